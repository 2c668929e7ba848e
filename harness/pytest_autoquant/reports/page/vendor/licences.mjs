// Write LICENSES.txt: the licence of every package of which something is in vendor.js.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const inputs = Object.keys(JSON.parse(readFileSync("meta.json", "utf8")).inputs);
const names = inputs.map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)\//)?.[1]);
const packages = [...new Set(names.filter(Boolean))].sort();
const parts = packages.map((name) => {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[sc]e/i.test(entry));
  const text = file ? readFileSync(`${folder}/${file}`, "utf8").trim() : license;
  return { title: `${name} ${version}`, text };
});
const texts = [...new Set(parts.map((part) => part.text))];
const blocks = texts.map((text) => {
  const titles = parts.filter((part) => part.text === text).map((part) => part.title);
  return `${titles.join(", ")}\n\n${text}\n`;
});
writeFileSync("LICENSES.txt", blocks.join("\n----------------\n\n").replace(/\r/g, ""));
rmSync("meta.json");
