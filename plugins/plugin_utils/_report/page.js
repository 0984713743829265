// SPDX-License-Identifier: GPL-3.0-or-later
// All that is shown is made by make() and text nodes. Nothing of the data becomes markup, a style or an address.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const STATES = {
    not_limited: ["!", "not limited", "have their rules, which do not limit"],
    differs: ["≠", "differ", "limit would change them"],
    cannot: ["✕", "cannot", "lack something, or forbid it"],
    failed: ["?", "failed", "the comparison ended with an error"],
    unreachable: ["–", "unreachable", "gave no answer"],
    as_wanted: ["✓", "as wanted", "nothing would change"],
  };
  // What is true of hosts whatever their state.
  const NOTES = {
    extra: ["with rules that no variable names", (host) => host.extra.length > 0],
    none: ["for which no variable names a rule", (host) => host.none],
    forgotten: ["with rules that do not survive a reboot", (host) => host.forgotten.length > 0],
    boot: ["of which not all stored rules are applied, or will be", (host) => host.boot.length > 0],
    unpaced: ["with rules whose connections are not all paced", (host) => host.rules.some((rule) => rule.reason)],
  };
  const PAGE = 50, PRINTED = 1000, GROUPS = 20, NAMES = 12, CHANGES = 30, RULES = 1000;

  const byId = (id) => document.getElementById(id);
  const SVG = new Set(["svg", "rect", "title"]);

  function make(tag, attributes, ...children) {
    const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "on") {
        for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
      } else if (value !== null && value !== false) {
        element.setAttribute(name, value === true ? "" : value);
      }
    }
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }

  const whole = new Intl.NumberFormat("en");
  const count = (number, one, many) => `${whole.format(number)} ${number === 1 ? one : many || `${one}s`}`;
  const percent = (part, all) => {
    const value = (100 * part) / all;
    return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
  };
  function rate(bytes) {
    if (bytes === null) return "–";
    let value = bytes * 8, unit = 0;
    const units = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
    return `${Number(value.toPrecision(3))} ${units[unit]}`;
  }
  const name = (text) => make("bdi", {}, text);
  const stateMark = (state) => make("span", { class: `state s-${state}` }, `${STATES[state][0]} ${STATES[state][1]}`);
  const compare = new Intl.Collator("en", { numeric: true }).compare;

  // Rows of the data as objects.
  const hosts = data.hosts.map(([host, state, group, kernel, missing, extra, none, rules, forgotten, boot, leftOut]) => ({
    name: host, state: data.states[state], order: state, group, kernel: data.kernels[kernel], missing: data.missing[missing],
    extra, none, forgotten, boot, leftOut,
    rules: rules.map(([kind, processes, use, part, binds, packets, drops]) => {
      const [rule, limit, bucket, mode, reason, each] = data.kinds[kind];
      return { name: rule, limit, bucket, mode, reason, each, processes, use, part, binds, packets, drops };
    }),
  }));
  const groups = data.groups.map(([state, reasons, changes]) => ({ state: data.states[state], reasons, changes, hosts: [] }));
  for (const group of groups) {
    const after = group.changes.slice(0, CHANGES).map((change) => change[1]);
    group.short = (group.reasons.length ? group.reasons[0] : after.join("; ")).slice(0, 300);
    group.found = [...group.reasons, ...group.changes.flat()].join("\n").toLowerCase();
  }
  for (const host of hosts) {
    const group = groups[host.group];
    if (group) group.hosts.push(host);
    host.short = group ? group.short : "";
    host.also = group ? group.found : "";
    host.fullest = host.rules.reduce((most, rule) => Math.max(most, rule.part === null ? -1 : rule.part), -1);
    host.drops = host.rules.reduce((sum, rule) => sum + (rule.drops || 0), 0);
    host.packets = host.rules.reduce((sum, rule) => sum + (rule.packets || 0), 0);
    host.found = [host.name, STATES[host.state][1], host.kernel, ...host.extra, ...host.rules.map((rule) => rule.name)].join("\n").toLowerCase();
  }
  const rules = data.rules.map(([rule, number, slowest, fastest, limits, use, binds, packets, drops, , unpaced, , each]) => (
    { name: rule, hosts: number, slowest, fastest, use, binds, packets, drops, unpaced, each,
      // Where each cgroup has the limit for itself, nobody knows how much they may send together.
      part: each || !limits ? -1 : use / limits, found: rule.toLowerCase(), also: "" }));

  function meter(part) {
    const width = Math.min(100, Math.max(0, 100 * part));
    return make("svg", { class: part >= 0.95 ? "meter full" : "meter", "aria-hidden": "true", viewBox: "0 0 100 10", preserveAspectRatio: "none" },
      make("rect", { width: width.toFixed(1), height: 10 }));
  }
  const used = (part) => (part < 0 ? "" : make("span", { class: "used" }, meter(part), percent(part, 1)));
  const dropped = (row) => (!row.drops ? "" : `${whole.format(row.drops)} (${percent(row.drops, row.drops + row.packets)})`);
  const each = (row) => (row.each ? " each" : "");
  const limits = (row) => (row.slowest === row.fastest ? rate(row.slowest) : `${rate(row.slowest)} to ${rate(row.fastest)}`) + each(row);

  // A table that is sorted, searched and shown page by page. A column: label, value (to sort by), cell, numeric, first (direction).
  class Table {
    constructor({ what, label, columns, rows, sort, keep, detail, head }) {
      Object.assign(this, { what, columns, rows, keep, detail, sort: [...sort], page: 0, size: PAGE, words: [], open: new Set() });
      this.search = make("input", { type: "search", placeholder: `Search ${what[1]}`, "aria-label": `Search ${what[1]}`, autocomplete: "off",
        on: { input: () => { this.words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean); this.again(); } } });
      this.chips = make("span", { class: "chips" });
      this.told = make("span", { class: "faint", role: "status" });
      this.heads = columns.map((column, index) => make("th", { scope: "col", role: "columnheader", class: column.numeric ? "n" : null },
        make("button", { type: "button", class: "sort", on: { click: () => this.by(index) } }, column.label)));
      this.body = make("tbody", { role: "rowgroup" });
      const table = make("table", { class: "wide", role: "table", "aria-label": label },
        make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...this.heads)), this.body);
      this.back = make("button", { type: "button", on: { click: () => this.turn(-1) } }, "Previous");
      this.next = make("button", { type: "button", on: { click: () => this.turn(1) } }, "Next");
      this.where = make("span", { class: "faint" });
      this.sizes = make("select", { on: { change: () => { this.size = Number(this.sizes.value); this.again(); } } },
        ...[PAGE, 200, 1000].map((size) => make("option", { value: size }, size)));
      this.pager = make("nav", { class: "pager", "aria-label": `Pages of ${what[1]}` }, this.back, this.next, this.where,
        make("label", {}, "Rows ", this.sizes));
      this.element = make("div", {}, make("div", { class: "tools" }, this.search, this.chips, head || null, this.told),
        make("div", { class: "frame" }, table), this.pager);
      this.again();
    }

    by(index) {
      const [column, down] = this.sort;
      this.sort = column === index ? [index, !down] : [index, Boolean(this.columns[index].numeric)];
      this.again();
    }

    turn(pages) {
      this.page += pages;
      this.show();
      this.element.scrollIntoView({ block: "start" });
    }

    // After anything that changes which rows there are, or their order.
    again() {
      const [index, down] = this.sort;
      const { value } = this.columns[index];
      const keyed = this.rows.filter((row) => (!this.keep || this.keep(row)) && this.words.every((word) => row.found.includes(word) || row.also.includes(word)))
        .map((row) => [value(row), row]);
      const order = ([a, first], [b, second]) => (typeof a === "number" ? a - b : compare(a, b)) * (down ? -1 : 1) || compare(first.name, second.name);
      this.matching = keyed.sort(order).map(([, row]) => row);
      this.heads.forEach((head, place) => {
        if (place === index) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
      this.page = 0;
      this.show();
    }

    show(begin = this.page * this.size, size = this.size) {
      const rows = this.matching.slice(begin, begin + size);
      this.body.replaceChildren(...rows.flatMap((row) => this.row(row)));
      if (!rows.length) this.body.append(make("tr", { role: "row" }, make("td", { role: "cell", colspan: this.columns.length }, "Nothing matches.")));
      const all = this.matching.length;
      this.told.textContent = all === this.rows.length ? count(all, ...this.what) : `${whole.format(all)} of ${count(this.rows.length, ...this.what)}`;
      this.where.textContent = rows.length ? `${whole.format(begin + 1)}–${whole.format(begin + rows.length)} of ${whole.format(all)}` : "";
      this.back.disabled = begin === 0;
      this.next.disabled = begin + size >= all;
      this.pager.hidden = all <= PAGE;
    }

    row(row) {
      const open = this.detail && this.open.has(row);
      const cells = this.columns.map((column, index) => {
        let content = column.cell(row);
        if (index === 0 && this.detail) {
          content = make("button", { type: "button", class: "link", "aria-expanded": String(open), on: { click: () => this.toggle(row) } }, content);
        }
        return make(index ? "td" : "th", { role: index ? "cell" : "rowheader", scope: index ? null : "row", "data-label": index ? column.label : null,
          class: [column.numeric ? "n" : "", content === "" ? "none" : ""].join(" ").trim() || null }, content);
      });
      const main = make("tr", { role: "row" }, ...cells);
      return open ? [main, make("tr", { role: "row", class: "detail" }, make("td", { role: "cell", colspan: cells.length }, ...this.detail(row)))] : [main];
    }

    toggle(row) {
      if (!this.open.delete(row)) this.open.add(row);
      this.show();
      const place = this.matching.slice(this.page * this.size, (this.page + 1) * this.size).indexOf(row);
      this.body.querySelectorAll(".link[aria-expanded]")[place].focus();
    }
  }

  // What the table of hosts is filtered by, besides words.
  const NONE = { state: null, group: null, rule: null, note: null };
  const filter = { ...NONE };
  const chip = (key, text) => make("button", { type: "button", "aria-label": `Remove the filter ${text}`, on: { click: () => only({ [key]: null }) } }, `${text} ✕`);

  function only(change, show) {
    Object.assign(filter, change);
    table.chips.replaceChildren(...[
      filter.state && chip("state", STATES[filter.state][1]),
      filter.group && chip("group", count(filter.group.hosts.length, "host that is alike", "hosts that are alike")),
      filter.rule && chip("rule", `rule ${filter.rule}`),
      filter.note && chip("note", NOTES[filter.note][0]),
    ].filter(Boolean));
    for (const tile of document.querySelectorAll(".tile")) tile.setAttribute("aria-pressed", String(tile.dataset.state === filter.state));
    table.again();
    if (show) {
      byId("hosts").scrollIntoView();
      table.search.focus({ preventScroll: true });
    }
  }

  function changes(list) {
    const shown = list.slice(0, CHANGES).flatMap(([before, after]) => [make("del", {}, `− ${before}`), make("ins", {}, `+ ${after}`)]);
    return make("div", { class: "diff" }, ...shown, list.length > CHANGES ? `and ${count(list.length - CHANGES, "further change")}, which the text and JSON have` : "");
  }
  const why = (group) => [
    ...group.reasons.slice(0, CHANGES).map((reason) => make("p", { class: "text" }, reason)),
    ...(group.reasons.length > CHANGES ? [make("p", {}, `and ${count(group.reasons.length - CHANGES, "further reason")}, which the text and JSON have`)] : []),
    ...(group.changes.length ? [changes(group.changes)] : []),
  ];

  function detail(host) {
    const told = host.group >= 0 ? why(groups[host.group]) : [];
    if (host.rules.length) {
      told.push(make("h4", {}, "Rules on this host"), make("div", { class: "sub", tabindex: 0, role: "region", "aria-label": `Rules on ${host.name}` }, make("table", {},
        make("thead", {}, make("tr", {}, ...["Rule", "Limit", "Bucket", "Processes", "Use", "Dropped packets", "TCP"].map((label) => make("th", { scope: "col" }, label)))),
        make("tbody", {}, ...host.rules.slice(0, RULES).map((rule) => make("tr", {},
          make("th", { scope: "row" }, name(rule.name)), make("td", {}, rate(rule.limit) + each(rule)),
          make("td", {}, rule.bucket === null ? "–" : `${whole.format(rule.bucket)} B`), make("td", {}, whole.format(rule.processes)),
          make("td", {}, rate(rule.use), rule.part === null ? "" : `, ${percent(rule.part, 1)}`, rule.binds ? " (binds)" : ""), make("td", {}, dropped({ drops: rule.drops || 0, packets: rule.packets || 0 }) || "0"),
          make("td", {}, rule.reason ? `${rule.mode}: ${rule.reason}` : rule.mode || "–")))))));
    }
    const further = Math.max(0, host.rules.length - RULES) + host.leftOut;
    if (further) told.push(make("p", {}, `and ${count(further, "further rule")}`));
    if (host.extra.length) told.push(make("h4", {}, "Rules that no variable names"), make("p", { class: "text" }, host.extra.join(", ")));
    if (host.none) told.push(make("p", { class: "text" }, "No variable names a rule for this host: it is to have none, or variables that are meant for it are not read."));
    if (host.forgotten.length) told.push(make("h4", {}, "Rules that do not survive a reboot"), make("p", { class: "text" }, host.forgotten.join(", ")));
    if (host.boot.length) told.push(make("h4", {}, "Stored rules"), make("ul", {}, ...host.boot.map((text) => make("li", { class: "text" }, text))));
    if (host.missing.length) told.push(make("h4", {}, "Missing"), make("ul", {}, ...host.missing.map((text) => make("li", { class: "text" }, text))));
    return told.length ? told : [make("p", {}, "This host has no rules.")];
  }

  const table = new Table({
    what: ["host", "hosts"], label: "Hosts", rows: hosts, sort: [1, false], detail, keep: (host) =>
      (!filter.state || host.state === filter.state) && (!filter.group || groups[host.group] === filter.group) &&
      (!filter.rule || host.rules.some((rule) => rule.name === filter.rule)) && (!filter.note || NOTES[filter.note][1](host)),
    columns: [
      { label: "Host", value: (host) => host.name, cell: (host) => name(host.name) },
      { label: "State", value: (host) => host.order, cell: (host) => stateMark(host.state) },
      { label: "What", value: (host) => host.short, cell: (host) => (host.short ? make("span", { class: "clip" }, host.short) : "") },
      { label: "Rules", value: (host) => host.rules.length, cell: (host) => whole.format(host.rules.length), numeric: true },
      { label: "Fullest rule", value: (host) => host.fullest, cell: (host) => used(host.fullest), numeric: true },
      { label: "Dropped", value: (host) => host.drops, cell: dropped, numeric: true },
      { label: "Kernel", value: (host) => host.kernel, cell: (host) => (host.kernel ? name(host.kernel) : "") },
    ],
  });

  function glance() {
    const numbers = new Map(data.states.map((state) => [state, 0]));
    for (const host of hosts) numbers.set(host.state, numbers.get(host.state) + 1);
    let left = 0;
    // What there is little of is what matters: it can be seen, too.
    const parts = [...numbers].filter(([, number]) => number).map(([state, number], place, { length }) => {
      const width = place === length - 1 ? 1000 - left : Math.max(5, (975 * number) / hosts.length);
      const part = make("rect", { class: `fill s-${state}`, x: left, width, height: 10 });
      left += width;
      return part;
    });
    const words = [...numbers].map(([state, number]) => `${number} ${STATES[state][1]}`).join(", ");
    byId("glance").append(
      make("svg", { class: "bar", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": `Of ${count(hosts.length, "host")}: ${words}` }, ...parts),
      make("ul", { class: "tiles" }, ...[...numbers].map(([state, number]) => make("li", {},
        make("button", { type: "button", class: `tile s-${state}`, "data-state": state, "aria-pressed": "false",
          on: { click: () => only({ state: filter.state === state ? null : state }, filter.state !== state) } },
        make("strong", {}, whole.format(number)), stateMark(state), make("small", {}, STATES[state][2]))))));
    const notes = Object.entries(NOTES).map(([note, [text, is]]) => [note, text, hosts.filter(is).length]).filter(([, , number]) => number);
    byId("glance").append(make("p", { class: "notes", hidden: !notes.length }, "Also: ", ...notes.flatMap(([note, text, number], place) => [place ? ", " : "",
      make("button", { type: "button", class: "link", on: { click: () => only({ ...NONE, note }, true) } }, `${count(number, "host")} ${text}`)])));
  }

  function card(group) {
    const { length } = group.hosts;
    const names = group.hosts.slice(0, NAMES).flatMap((host, place) => (place ? [", ", name(host.name)] : [name(host.name)]));
    const rest = length > NAMES ? ` and ${whole.format(length - NAMES)} more` : "";
    return make("article", { class: `card s-${group.state}` },
      make("div", { class: "card-head" },
        make("h3", {}, `${count(length, "host")} `, stateMark(group.state)),
        make("button", { type: "button", class: "act", "aria-label": `Show in the list: ${count(length, "host")}`, on: { click: () => only({ ...NONE, group }, true) } }, "Show in the list")),
      ...why(group), make("p", { class: "names" }, ...names, rest));
  }

  function cards() {
    const place = byId("groups"), more = make("button", { type: "button", class: "act" });
    let shown = 0;
    const go = () => {
      more.before(...groups.slice(shown, shown + GROUPS).map(card));
      shown = Math.min(shown + GROUPS, groups.length);
      more.textContent = `Show more: ${whole.format(groups.length - shown)} further kinds of hosts`;
      more.hidden = shown === groups.length;
    };
    place.append(more);
    more.addEventListener("click", go);
    go();
  }

  byId("static").remove();
  byId("summary").hidden = true;
  glance();
  if (groups.length) cards();
  byId("differences").hidden = !groups.length;
  if (rules.length) {
    byId("rules").append(new Table({
      what: ["rule", "rules"], label: "Rules", rows: rules, sort: [1, true],
      columns: [
        { label: "Rule", value: (rule) => rule.name, cell: (rule) => make("button", { type: "button", class: "link", on: { click: () => only({ ...NONE, rule: rule.name }, true) } }, name(rule.name)) },
        { label: "Hosts", value: (rule) => rule.hosts, cell: (rule) => whole.format(rule.hosts), numeric: true },
        { label: "Limit", value: (rule) => rule.fastest || 0, cell: limits, numeric: true },
        { label: "Use", value: (rule) => rule.use, cell: (rule) => rate(rule.use), numeric: true },
        { label: "Of all limits", value: (rule) => rule.part, cell: (rule) => used(rule.part), numeric: true },
        { label: "Binds on", value: (rule) => rule.binds, cell: (rule) => (rule.binds ? count(rule.binds, "host") : ""), numeric: true },
        { label: "Dropped", value: (rule) => rule.drops, cell: dropped, numeric: true },
        { label: "Not paced on", value: (rule) => rule.unpaced, cell: (rule) => (rule.unpaced ? count(rule.unpaced, "host") : ""), numeric: true },
      ],
    }).element);
    byId("rules").hidden = false;
  }
  byId("hosts").append(table.element);
  byId("hosts").hidden = false;
  only({});

  // On paper, all that match, up to a number that somebody reads.
  window.addEventListener("beforeprint", () => table.show(0, PRINTED));
  window.addEventListener("afterprint", () => table.show());

  const theme = byId("theme"), dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; label(); });
  dark.addEventListener("change", label);
  theme.hidden = false;
  label();
})();
