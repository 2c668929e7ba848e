"use strict";
// Shows the page's data. Numbers arrive with the text that shows them; only what depends on two
// cases chosen here is computed here. Text reaches the document as text only, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const comparesRuns = document.querySelector('table[data-name="runs"]') !== null;
  const cases = new Map(data.cases.map((entry) => [entry.id, entry]));
  const byId = (id) => document.getElementById(id);
  const drawn = new Map();

  // --- the data --------------------------------------------------------------------------------

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const percent = (share) => (share === "n/a" ? share : `${share}%`);
  const split = (text) => (text === "" ? [] : text.split(" "));

  /** The layer groups of a case, the most sensitive first. */
  function groupsOf(entry) {
    const { names, keys, places, weights, weights_shown, linears } = data.group_sets[entry.groups];
    const { scores, order, ...of } = data.score_sets[entry.scores];
    const [texts, parts, bars, ties] = [of.shown, of.shares, of.errors, of.ranks].map(split);
    const [kl, klErrors, klRanks] = [of.kl, of.kl_errors, of.kl_ranks].map(split);
    return order.map((i, place) => ({
      ...places[i],
      name: names[i],
      key: keys[i],
      weights: weights[i],
      weightsShown: weights_shown[i],
      linears: linears[i],
      score: scores[i],
      scoreShown: texts[i],
      share: percent(parts[i]),
      error: bars[i],
      ranks: ties[i]?.replace("-", " to "),
      kl: kl[i],
      klError: klErrors[i],
      klRank: klRanks[i],
      selected: entry.selected === "" ? null : entry.selected[i] === "1",
      rank: place + 1,
      // Sorts as the exact scores do; below all others where there is no score.
      height: isNumber(scores[i]) ? order.length - place : -1,
    }));
  }

  // --- what depends on two cases ---------------------------------------------------------------

  /** Ranks from 1, ties sharing their mean. */
  function tiedRanks(values) {
    const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
    const ranks = new Array(values.length);
    for (let start = 0; start < order.length; ) {
      let stop = start;
      while (stop < order.length && values[order[stop]] === values[order[start]]) stop += 1;
      for (let i = start; i < stop; i += 1) ranks[order[i]] = (start + stop + 1) / 2;
      start = stop;
    }
    return ranks;
  }

  /** Spearman: the correlation of the ranks; null where one side is all alike. */
  function spearman(before, after) {
    const [x, y] = [tiedRanks(before), tiedRanks(after)];
    const mean = (x.length + 1) / 2;
    let [both, first, second] = [0, 0, 0];
    x.forEach((rank, i) => {
      both += (rank - mean) * (y[i] - mean);
      first += (rank - mean) ** 2;
      second += (y[i] - mean) ** 2;
    });
    return first && second ? both / Math.sqrt(first * second) : null;
  }

  /** A number with `digits` or more: as many as it takes not to look like 1 where it is not. */
  function notOne(value, format, digits) {
    let more = digits;
    while (value !== 1 && more < 17 && Number(value[format](more)) === 1) more += 1;
    return value[format](more);
  }

  // --- pieces of the document ----------------------------------------------------------------

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const address = (id) => `#case=${encodeURIComponent(id)}`;
  const openCase = (id) => {
    if (cases.has(id)) location.hash = address(id);
  };

  /** The rows of a table as text, as it is sorted and filtered now. */
  function lines(table, grid) {
    const head = [...table.tHead.rows[0].cells].map((cell) => cell.dataset.title);
    const rows = grid.rows({ search: "applied", order: "applied" }).nodes().toArray();
    return [head, ...rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))];
  }

  /** RFC 4180; an apostrophe before text that a spreadsheet would evaluate as a formula. */
  function csv(rows) {
    const field = (text) => {
      const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
      return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    return rows.map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  }

  function markdown([head, ...rows]) {
    const line = (cells) =>
      `| ${cells.map((text) => text.replace(/([\\`*_[\]<>|~&])/g, "\\$1").replace(/\s+/g, " ")).join(" | ")} |`;
    return [line(head), `|${" --- |".repeat(head.length)}`, ...rows.map(line)].join("\n") + "\n";
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", { "aria-label": "copied text" });
      area.value = text;
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
    return true;
  }

  function download(text, name) {
    const target = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    element("a", { href: target, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(target), 1000);
  }

  function button(text, act) {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", () => act(made));
    return made;
  }

  /** Let a table sort and filter, and give it its buttons. */
  function enhance(table) {
    if (drawn.has(table)) return;
    const name = table.dataset.name;
    for (const cell of table.tHead.rows[0].cells) cell.dataset.title = cell.textContent.trim();
    const short = table.tBodies[0].rows.length <= 25;
    const grid = new vendor.DataTable(table, {
      autoWidth: false,
      order: [],
      orderMulti: false,
      paging: !short,
      info: !short,
      pageLength: 25,
      lengthMenu: [25, 100, { label: "All", value: -1 }],
      layout: {
        topStart: short ? null : "pageLength",
        topEnd: "search",
        bottomStart: short ? null : "info",
        bottomEnd: short ? null : "paging",
      },
      language: { search: "Filter", emptyTable: "nothing here" },
    });
    table.tHead.addEventListener("keydown", (event) => {
      if (event.key !== " " || !event.target.matches('[role="button"]')) return;
      event.preventDefault();
      event.target.click();
    });
    const status = element("span", { role: "status" });
    const tools = element(
      "p",
      { class: "tools" },
      button("Copy as Markdown", async () => {
        const done = await copy(markdown(lines(table, grid)));
        status.textContent = done ? "copied" : "the browser does not let this page copy";
      }),
      button("Download CSV", () => download(csv(lines(table, grid)), `${name}.csv`)),
      status,
    );
    const frame = table.closest(".dt-container");
    frame.after(tools);
    table.parentElement.classList.add("scroll");
    table.parentElement.tabIndex = 0;
    table.parentElement.setAttribute("role", "region");
    table.parentElement.setAttribute("aria-label", `Table: ${name}`);
    drawn.set(table, grid);
  }

  /**
   * Replace the table in a place. Columns are {title, of, order}: `of` gives
   * a row's text or node, `order` the number to sort by, where it is one.
   */
  function putTable(place, name, columns, rows) {
    const before = place.querySelector("table");
    if (before) {
      drawn.get(before).destroy();
      drawn.delete(before);
    }
    const kind = (column) => (column.order ? { class: "n" } : {});
    const head = columns.map((column) => element("th", kind(column), column.title));
    const body = rows.map((row) => {
      const cells = columns.map((column) => {
        const cell = element("td", kind(column), column.of(row));
        if (column.order) cell.dataset.order = isNumber(column.order(row)) ? column.order(row) : -1;
        return cell;
      });
      return element("tr", {}, ...cells);
    });
    const table = element(
      "table",
      { "data-name": name },
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...body),
    );
    place.replaceChildren(table);
    enhance(table);
  }

  // --- charts ---------------------------------------------------------------------------------

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const [ink, line] = ["--ink", "--line"].map((name) => style.getPropertyValue(name).trim());
    const text = { labelColor: ink, titleColor: ink };
    return {
      axis: { ...text, gridColor: line, domainColor: line, tickColor: line },
      legend: text,
      view: { stroke: null },
      font: "system-ui, sans-serif",
    };
  }

  const nothing = { load: () => Promise.reject(new Error("offline")), sanitize: () => Promise.reject(new Error("offline")) };

  const titled = (chart, title) => ({
    ...chart,
    axes: chart.axes.map((axis) => (axis.orient === "left" && axis.title ? { ...axis, title } : axis)),
  });

  /**
   * Draw a chart's cells. `say` gets the cell under the pointer or the focus, `open` the one that
   * is clicked, or on which Enter is pressed. `yTitle` replaces the title of the vertical axis.
   */
  async function draw(name, cells, { open, say, renderer = "svg", yTitle }) {
    const place = byId(`chart-${name}`);
    if (drawn.has(place)) drawn.get(place).finalize();
    drawn.delete(place);
    place.replaceChildren();
    if (cells.length === 0) {
      place.append("Nothing was measured for this.");
      return;
    }
    const box = element("div");
    place.append(box);
    const view = new vendor.View(vendor.parse(yTitle ? titled(data.charts[name], yTitle) : data.charts[name], theme(), { ast: true }), {
      expr: vendor.expressionInterpreter,
      loader: nothing,
      renderer,
      container: box,
      logLevel: 1, // errors: of a scale over nothing Vega warns
      tooltip: () => {},
    });
    drawn.set(place, view);
    view.data("cells", cells);
    const { legend } = theme();
    if ((data.charts[name].signals ?? []).some((signal) => signal.name === "ink")) {
      view.signal("ink", legend.labelColor);
    }
    view.addEventListener("click", (_, item) => item?.datum && open?.(item.datum));
    view.addEventListener("mouseover", (_, item) => item?.datum && say?.(item.datum));
    await view.runAsync();
    if (renderer === "svg") navigable(place, open, say);
  }

  /** Let the arrow keys walk over the marks of a chart. */
  function navigable(place, open, say) {
    const marks = [...place.querySelectorAll('path[role="graphics-symbol"]')].filter(
      (mark) => mark.__data__?.datum,
    );
    const middle = (mark) => {
      const box = mark.getBoundingClientRect();
      return [box.x + box.width / 2, box.y + box.height / 2];
    };
    const focus = (mark) => {
      marks.forEach((other) => other.setAttribute("tabindex", other === mark ? "0" : "-1"));
      mark.focus();
    };
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    const nearest = (from, [dx, dy]) => {
      const [x, y] = middle(from);
      let [best, least] = [null, Infinity];
      for (const mark of marks) {
        const [mx, my] = middle(mark);
        const along = (mx - x) * dx + (my - y) * dy;
        const aside = Math.abs((mx - x) * dy) + Math.abs((my - y) * dx);
        const far = along + 3 * aside;
        if (along > 1 && far < least) [best, least] = [mark, far];
      }
      return best;
    };
    marks.forEach((mark, i) => {
      mark.setAttribute("tabindex", i === 0 ? "0" : "-1");
      if (open) mark.setAttribute("role", "button");
      mark.addEventListener("focus", () => say?.(mark.__data__.datum));
      mark.addEventListener("keydown", (event) => {
        const target = event.key in steps ? nearest(mark, steps[event.key]) : null;
        if (event.key in steps || event.key === "Enter" || event.key === " ") event.preventDefault();
        if (target) focus(target);
        if (event.key === "Enter" || event.key === " ") open?.(mark.__data__.datum);
      });
    });
  }

  const sayer = (name) => (datum) => {
    byId(`detail-${name}`).textContent = datum.detail ?? "";
  };

  // --- sections -------------------------------------------------------------------------------

  const nothingShown = { cells: [], frontier: [], measured_frontier: [], groups: { cases: [], groups: [] } };
  const shownView = () => data.views[Number(byId("view").value || 0)] ?? nothingShown;
  const compared = { a: undefined, b: undefined };
  const firstCase = () => cases.get(shownView().first_case) ?? data.cases[0];

  function showGrid() {
    return draw("grid", shownView().cells, { open: (cell) => openCase(cell.case), say: sayer("grid") });
  }

  const groupColumns = (unit, hasErrors, isChecked) => [
    { title: "rank", of: (row) => String(row.rank), order: (row) => row.rank },
    { title: "group", of: (row) => element("code", {}, row.name) },
    { title: "linears", of: (row) => String(row.linears || "unknown"), order: (row) => row.linears },
    { title: `score (${unit})`, of: (row) => row.scoreShown, order: (row) => row.height },
    ...(hasErrors ? errorColumns : []),
    ...(isChecked ? checkColumns : []),
    { title: "share of total (%)", of: (row) => row.share, order: (row) => row.height },
    { title: "weights (count)", of: (row) => row.weightsShown, order: (row) => row.weights },
    {
      title: "under the bit budget",
      of: (row) => (row.selected === null ? "unknown" : row.selected ? "quantized" : "16-bit"),
    },
  ];

  const errorColumns = [
    { title: "standard error", of: (row) => row.error, order: (row) => Number(row.error) },
    { title: "ranks at 95%", of: (row) => row.ranks, order: (row) => row.rank },
  ];

  const klShown = ({ kl, klError }) => (klError ? `${kl} ± ${klError}` : kl);

  const checkColumns = [
    { title: "measured KL (nats per token)", of: klShown, order: (row) => Number(row.kl) },
    { title: "rank by KL", of: (row) => row.klRank, order: (row) => Number(row.klRank) },
  ];

  /** A log scale shows no zero; the line goes through the median ratio of divergence and score. */
  function checkCells(rows, unit) {
    const shown = rows.filter(({ score, kl }) => score > 0 && Number(kl) > 0);
    const ratios = shown.map(({ score, kl }) => Number(kl) / score).sort((a, b) => a - b);
    const middle = ratios[Math.floor(ratios.length / 2)];
    return shown.map((row) => {
      const [kl, error] = [Number(row.kl), Number(row.klError ?? 0)];
      return {
        projection: row.projection,
        score: row.score,
        kl,
        fit: row.score * middle,
        low: Math.max(kl - 2 * error, kl / 10),
        high: kl + 2 * error,
        detail:
          `${row.name}: score ${row.scoreShown} ${unit}, rank ${row.rank}; ` +
          `measured KL ${klShown(row)} nats per token, rank ${row.klRank}`,
      };
    });
  }

  /** Whiskers that would reach zero or less end at a tenth of the score: the scale is a log scale. */
  const errorCells = (rows, unit) =>
    rows
      .filter(({ score }) => score > 0)
      .slice(0, 40)
      .map(({ name, key, rank, ranks, score, scoreShown, error }) => ({
        group: key,
        rank,
        score,
        low: Math.max(score - 2 * Number(error), score / 10),
        high: score + 2 * Number(error),
        detail: `${name}: score ${scoreShown} ± ${error} ${unit}, rank ${ranks} at 95%`,
      }));

  const layerCells = (rows, unit) =>
    rows.map(({ row, column, layer, projection, score, scoreShown, name, rank, share }) => ({
      row,
      column,
      layer,
      projection,
      score: score || null,
      detail: `${name}: rank ${rank}, score ${scoreShown} ${unit}, ${share} of the total`,
    }));

  function link(text, href) {
    return element("a", { href }, text);
  }

  function facts(entry) {
    const of = (label, ...values) => [
      element("dt", {}, label),
      ...values.map((value) => element("dd", {}, value)),
    ];
    return [
      ...of("case", entry.id),
      ...of("status", entry.alias_of ? `alias of ${entry.alias_of}` : entry.status),
      ...of("format", entry.format + (entry.experimental ? " (experimental)" : "")),
      ...of("weights stored in", `${entry.bits} bits per weight, scales included`),
      ...of("total score", `${entry.total_shown} ${entry.unit}`),
      ...(entry.whole_shown === "n/a"
        ? []
        : of("measured KL, every group quantized", `${entry.whole_shown} nats per token`)),
      ...Object.entries(entry.quantizers).flatMap(([name, text]) => of(name, text)),
      ...of("measured", entry.measured),
      ...of("files", ...Object.entries(entry.links).map(([text, href]) => link(text, href))),
    ];
  }

  async function showCase(id) {
    const entry = cases.get(id) ?? firstCase();
    if (!entry) return draw("layers", [], {});
    byId("case-choice").value = entry.id;
    byId("compare-this").href = `#compare=${encodeURIComponent(entry.id)}`;
    byId("case-selection").textContent = entry.selection;
    byId("case-whole").textContent = entry.whole;
    byId("case-notes").replaceChildren(...entry.remarks.map((text) => element("li", {}, text)));
    byId("case-facts").replaceChildren(...facts(entry));
    const rows = groupsOf(entry);
    const hasErrors = rows.some(({ error }) => error !== undefined);
    const isChecked = rows.some(({ kl }) => kl !== undefined);
    putTable(byId("table-case"), "layer-groups", groupColumns(entry.unit, hasErrors, isChecked), rows);
    byId("case-errors").hidden = !hasErrors;
    byId("case-check").hidden = entry.check === "";
    byId("case-check-found").textContent = entry.check;
    byId("case-check-chart").hidden = !isChecked;
    await draw("layers", layerCells(rows, entry.unit), { say: sayer("layers") });
    if (hasErrors) await draw("errors", errorCells(rows, entry.unit), { say: sayer("errors") });
    if (isChecked) await draw("check", checkCells(rows, entry.unit), { say: sayer("check") });
  }

  function showGroups() {
    const { cases: ids, groups } = shownView().groups;
    const most = Number(byId("rows").value) || groups.length;
    const rowOf = new Map(groups.slice(0, most).map(({ key }, row) => [key, row]));
    const cells = ids.flatMap((id, column) => groupCells(cases.get(id), column, rowOf));
    const [mean, lowest, highest] = [0, 1, 2].map((i) => (row) => row.shown[i]);
    putTable(
      byId("table-groups"),
      "groups",
      [
        { title: "group", of: (row) => element("code", {}, row.group) },
        { title: "cases (count)", of: (row) => String(row.cases), order: (row) => row.cases },
        { title: "mean share (%)", of: mean, order: (row) => row.mean },
        { title: "lowest share (%)", of: lowest, order: (row) => row.lowest },
        { title: "highest share (%)", of: highest, order: (row) => row.highest },
      ],
      groups,
    );
    return draw("groups", cells, {
      renderer: "canvas",
      open: (cell) => openCase(cell.id),
      say: (cell) => {
        byId("detail-groups").textContent = cell.group
          ? `${cell.group} in ${cell.case}: ${cell.shown} of the total score`
          : "";
      },
    });
  }

  /** A case's column of the chart; the share is unrounded, because it is drawn on a log scale. */
  const groupCells = (entry, column, rowOf) =>
    groupsOf(entry)
      .filter(({ key }) => rowOf.has(key))
      .map(({ name, key, score, share }) => ({
        row: rowOf.get(key),
        column,
        group: name,
        case: `${entry.pair} ${entry.granularity}`,
        share: (score ?? 0) / entry.total,
        shown: share,
        id: entry.id,
      }));

  /** The run of a case on a page of two runs, A or B; on other pages all cases are of one run. */
  const runOf = (entry) => (comparesRuns ? entry.id[0] : "");
  const nameInRun = (entry) => entry.id.slice(3);

  /** The case that A starts with: the view's first, on a page of two runs the same case in run A. */
  function startCase() {
    const entry = firstCase();
    return entry && runOf(entry) === "B" ? counterpart(entry) : entry;
  }

  const keysOf = (entry) => data.group_sets[entry.groups].keys.join();
  const haveTheSameGroups = (a, b) => a.groups === b.groups || keysOf(a) === keysOf(b);

  /** The case that B starts with: the same in the other run, else another one of the view. */
  function counterpart(entry) {
    const same = (other, ...names) => names.every((name) => other[name] === entry[name]);
    const others = data.cases.filter(
      (other) =>
        other !== entry &&
        haveTheSameGroups(other, entry) &&
        (!comparesRuns || runOf(other) !== runOf(entry)),
    );
    return (
      (comparesRuns && others.find((other) => nameInRun(other) === nameInRun(entry))) ||
      others.find((other) => same(other, "pair", "granularity", "size", "method")) ||
      others.find((other) => same(other, "model", "size", "method") && other.status === "measured") ||
      others[0] ||
      entry
    );
  }

  function showCompare(first, second) {
    const a = cases.get(first) ?? compared.a ?? startCase();
    if (!a) return draw("compare", [], {});
    const b = cases.get(second) ?? (a === compared.a ? compared.b : counterpart(a));
    Object.assign(compared, { a, b });
    byId("case-a").value = a.id;
    byId("case-b").value = b.id;
    const inB = groupsOf(b);
    const [byName, byKey] = ["name", "key"].map((of) => new Map(inB.map((row) => [row[of], row])));
    const rows = groupsOf(a)
      .map((row) => ({ ...row, other: byName.get(row.name) ?? byKey.get(row.key) }))
      .filter((row) => row.other)
      .map((row) => ({ ...row, moved: row.other.rank - row.rank }));
    const aligned = rows.find((row) => row.other.name !== row.name);
    const side = (of) => rows.map((row) => (isNumber(of(row)) ? of(row) : Infinity));
    const found = spearman(side((row) => row.score), side((row) => row.other.score));
    const top = rows.filter((row) => row.rank <= 10);
    const kept = top.filter((row) => row.other.rank <= 10).length;
    const hasOneUnit = a.method === b.method;
    byId("correlation").textContent = rows.length
      ? `${rows.length} groups in both. Spearman rank correlation ${found === null ? "n/a" : notOne(found, "toFixed", 4)}; ` +
        `${kept} of A's ${top.length} most sensitive are among B's ten; total score ${a.total_shown} ${a.unit} and ${b.total_shown} ${b.unit}.` +
        (hasOneUnit ? "" : ` Scored by ${a.method} and by ${b.method}: ranks compare, scores do not.`) +
        (aligned ? ` Groups are matched by the end of their names: ${aligned.name} and ${aligned.other.name}.` : "")
      : "The two have no layer group in common.";
    const ratio = (row) => (hasOneUnit && row.score > 0 && isNumber(row.other.score) ? row.other.score / row.score : null);
    const ratioShown = (row) => (ratio(row) === null ? "n/a" : String(Number(notOne(ratio(row), "toPrecision", 3))));
    putTable(
      byId("table-movers"),
      "movers",
      [
        { title: "group", of: (row) => element("code", {}, row.name) },
        { title: "rank in A", of: (row) => String(row.rank), order: (row) => row.rank },
        { title: "rank in B", of: (row) => String(row.other.rank), order: (row) => row.other.rank },
        { title: "moved (ranks)", of: (row) => (row.moved > 0 ? `+${row.moved}` : String(row.moved)), order: (row) => Math.abs(row.moved) },
        { title: `score in A (${a.unit})`, of: (row) => row.scoreShown, order: (row) => row.height },
        { title: `score in B (${b.unit})`, of: (row) => row.other.scoreShown, order: (row) => row.other.height },
        { title: "B / A (ratio)", of: ratioShown, order: ratio },
      ],
      [...rows].sort((x, y) => Math.abs(y.moved) - Math.abs(x.moved)),
    );
    const cells = rows.map((row) => ({
      before: row.rank,
      after: row.other.rank,
      projection: row.projection,
      detail: `${row.name}: rank ${row.rank} in A, ${row.other.rank} in B`,
    }));
    return draw("compare", cells, { say: sayer("compare") });
  }

  function showStability() {
    const view = shownView();
    const cells = data.stability.filter((point) => point.model === view.model && point.method === view.method);
    const open = (cell) => openCase(cell.case);
    return draw("stability", cells, { open, say: sayer("stability") });
  }

  function showFrontier() {
    const { frontier, measured_frontier: measured } = shownView();
    byId("frontier-choice").hidden = measured.length === 0;
    const byKl = measured.length > 0 && byId("damage").value === "kl";
    const points = byKl ? measured : frontier;
    const hasKl = points.some(({ kl }) => kl !== null);
    putTable(
      byId("table-frontier"),
      "frontier",
      [
        { title: "case", of: (row) => link(row.case, address(row.case)) },
        { title: "bits per weight", of: (row) => row.shown[0], order: (row) => row.bits },
        { title: "total score (per token)", of: (row) => row.shown[1], order: (row) => row.score },
        ...(hasKl
          ? [{ title: "measured KL (nats per token)", of: (row) => row.shown[2], order: (row) => row.kl }]
          : []),
        { title: "frontier", of: (row) => row.kind },
      ],
      points,
    );
    const open = (cell) => openCase(cell.case);
    const yTitle = byKl ? "measured KL, nats per token (log scale)" : "total score per token (log scale)";
    return draw("frontier", points, { open, say: sayer("frontier"), yTitle });
  }

  async function showSchemes() {
    if (!data.schemes.length) return;
    await draw("schemes", data.schemes, { say: sayer("schemes") });
    await draw("budgets", data.budgets, { say: sayer("budgets") });
  }

  const sections = {
    grid: showGrid,
    cases: () => {},
    case: showCase,
    groups: showGroups,
    compare: showCompare,
    stability: showStability,
    frontier: showFrontier,
    ...(byId("section-schemes") ? { schemes: showSchemes } : {}),
    origin: () => {},
  };

  async function show({ moved = false } = {}) {
    const [wanted, ...rest] = location.hash.slice(1).split("=");
    const name = Object.hasOwn(sections, wanted) ? wanted : "grid";
    const given = rest.join("=").split("&").filter(Boolean).map(decode);
    for (const section of document.querySelectorAll("section.view")) {
      section.hidden = section.dataset.view !== name;
    }
    for (const anchor of document.querySelectorAll("nav a")) {
      if (anchor.hash === `#${name}`) anchor.setAttribute("aria-current", "page");
      else anchor.removeAttribute("aria-current");
    }
    byId(`section-${name}`).querySelectorAll("table.data").forEach(enhance);
    await sections[name](...given);
    if (moved) {
      byId("main").focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
    document.body.dataset.shown = location.hash;
  }

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function start() {
    document.documentElement.classList.add("scripts");
    if (data.views.length) byId("view").value = data.first_view;
    for (const select of document.querySelectorAll("select.choose-case")) {
      select.append(...data.cases.map((entry) => element("option", { value: entry.id }, entry.id)));
    }
    byId("view").addEventListener("change", () => {
      // A case has a size of its own: another size is another case.
      if (location.hash.startsWith("#case=")) location.hash = "#case";
      else show();
    });
    byId("damage").addEventListener("change", () => show());
    byId("rows").addEventListener("change", () => show());
    byId("case-choice").addEventListener("change", (event) => openCase(event.target.value));
    for (const id of ["case-a", "case-b"]) {
      byId(id).addEventListener("change", () => {
        const [a, b] = ["case-a", "case-b"].map((side) => encodeURIComponent(byId(side).value));
        location.hash = `#compare=${a}&${b}`;
      });
    }
    byId("theme").addEventListener("click", () => {
      const root = document.documentElement;
      const dark = getComputedStyle(root).colorScheme.includes("dark");
      root.dataset.theme = dark ? "light" : "dark";
      show();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      byId("main").focus();
    });
    window.addEventListener("hashchange", () => show({ moved: true }));
    return show();
  }

  start();
})();
