export { parse, View } from "vega";
export { expressionInterpreter } from "vega-interpreter";
export { default as DataTable } from "datatables.net";
