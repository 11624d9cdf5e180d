"use strict";
// Grid, inspector and keys. Texts from the server are set as text, never as HTML.

const target = document.body.dataset.target;
const NAMES = { positive: "Positive", negative: "Negative", drop: "Drop" };
const FACTS = [
  ["similarity", "Similarity"], ["why", "Reason"], ["source", "Source"],
  ["class_name", "Class"], ["label_state", "Label"], ["stratum", "Stratum"], ["split", "Split"],
  ["uri", "URI"], ["size", "Size"], ["author", "Author"], ["license", "License"], ["key", "Key"],
];

let page = null; // the server's last answer
let current = 0; // position of a suspect on the page
const undone = []; // steps to undo: {page, current, verdicts: {key: verdict before}}
const nearestOf = new Map(); // by key
let saving = Promise.resolve(); // changes are sent one after another

function urlOf(path, parameters = {}) {
  return `${path}?${new URLSearchParams({ target, ...parameters })}`;
}

const suspects = () => (page ? page.suspects : []);
const suspect = () => suspects()[current];
const imageOf = (each) => urlOf(`suspects/${encodeURIComponent(each.key)}`);
const decimal = (number) => (number === null ? "" : number.toFixed(3));

async function openPage(number, position = 0) {
  page = await request(urlOf(`api/page/${number}`));
  if (page.page >= page.num_pages && page.num_pages > 0) return openPage(page.num_pages - 1);
  current = Math.max(0, Math.min(position, suspects().length - 1));
  $("grid").replaceChildren(...suspects().map(makeCard));
  $("empty").hidden = page.num_pages > 0;
  $("inspector").hidden = page.num_pages === 0;
  $("pager").hidden = page.num_pages < 2;
  $("page-number").textContent = `Page ${page.page + 1} of ${page.num_pages}`;
  $("previous").disabled = page.page === 0;
  $("next").disabled = page.page + 1 >= page.num_pages;
  showProgress(page.progress);
  show();
}

function makeCard(each, number) {
  const card = element(
    "button", { class: "card", role: "option", tabindex: "-1", "data-key": each.key },
    element("img", { src: imageOf(each), alt: "", loading: "lazy" }),
    element("span", { class: "similarity" }, decimal(each.similarity)),
    element("span", { class: "verdict" }),
  );
  card.addEventListener("click", () => run(() => moveTo(number)));
  card.addEventListener("dblclick", openZoom);
  return card;
}

function showProgress(progress) {
  $("bar").max = Math.max(progress.total, 1);
  $("bar").value = progress.decided;
  $("decided").textContent = progress.decided.toLocaleString("en");
  $("total").textContent = progress.total.toLocaleString("en");
  $("generation").textContent = progress.generation;
  for (const verdict of Object.keys(NAMES)) {
    $(`num-${verdict}`).textContent = progress.counts[verdict] ?? 0;
  }
  $("apply").disabled = progress.decided === 0;
  page.progress = progress;
}

function show() {
  [...$("grid").children].forEach((card, number) => {
    const { verdict } = suspects()[number];
    card.setAttribute("aria-selected", number === current);
    card.querySelector(".verdict").textContent = verdict ? NAMES[verdict] : "";
    if (verdict) card.dataset.verdict = verdict;
    else delete card.dataset.verdict;
  });
  const each = suspect();
  if (!each) return;
  $("grid").children[current].scrollIntoView({ block: "nearest" });
  $("picture").firstChild.src = imageOf(each);
  for (const button of document.querySelectorAll("#inspector .verdicts button")) {
    button.classList.toggle("chosen", button.dataset.verdict === each.verdict);
  }
  const shown = { ...each, similarity: decimal(each.similarity), size: `${each.width} x ${each.height} pixels` };
  showFacts(FACTS, shown);
  $("zoom").firstChild.src = imageOf(each);
  $("zoom-caption").textContent = `${each.verdict ? NAMES[each.verdict] : "Undecided"}, similarity ${decimal(each.similarity)}, ${each.source}`;
  showNearest(each.key);
}

async function showNearest(key) {
  const places = [$("nearest"), $("zoom-nearest")];
  if (!nearestOf.has(key)) {
    places.forEach((place) => place.replaceChildren());
    // While a key is held down, the pictures passed on the way need no request.
    await new Promise((resolve) => setTimeout(resolve, 60));
    if (suspect()?.key !== key) return;
    try {
      nearestOf.set(key, await request(urlOf(`api/nearest/${encodeURIComponent(key)}`)));
    } catch (error) {
      notify(error.message, { bad: true });
      return;
    }
  }
  if (suspect()?.key !== key) return;
  for (const place of places) {
    place.replaceChildren(...nearestOf.get(key).map((each) => element(
      "figure", {},
      element("img", { src: urlOf(`positives/${encodeURIComponent(each.content_hash)}`), alt: "" }),
      element("figcaption", {}, decimal(each.cosine)),
    )));
  }
}

async function moveTo(number) {
  if (number < 0 && page.page > 0) await openPage(page.page - 1, page.page_size - 1);
  else if (number >= suspects().length && page.page + 1 < page.num_pages) await openPage(page.page + 1);
  else {
    current = Math.max(0, Math.min(number, suspects().length - 1));
    show();
  }
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

// Shows the verdicts immediately, and reloads the page if they cannot be saved.
function change(verdicts) {
  const before = {};
  for (const each of suspects()) {
    if (each.key in verdicts) {
      before[each.key] = each.verdict;
      each.verdict = verdicts[each.key];
    }
  }
  show();
  saving = saving.then(async () => {
    try {
      const progress = await request(urlOf("api/verdicts"), { verdicts });
      const isOld = page.progress.generation !== progress.generation;
      showProgress(progress);
      if (isOld) await openPage(page.page);
      else if (progress.decided === progress.total) notify("All pictures are decided. Press a to apply the verdicts.");
      else notify("");
    } catch (error) {
      await openPage(page.page, current).catch(() => {});
      notify(`Not saved: ${error.message}`, { bad: true });
    }
  });
  return before;
}

function decide(verdict, { rest = false } = {}) {
  if (!suspect()) return;
  const chosen = rest
    ? suspects().slice(current).filter((each, n) => n === 0 || !each.verdict)
    : [suspect()];
  const place = { page: page.page, current };
  const verdicts = Object.fromEntries(chosen.map((each) => [each.key, verdict]));
  undone.push({ ...place, verdicts: change(verdicts) });
  return moveTo(rest ? suspects().length : current + 1);
}

async function undo() {
  const step = undone.pop();
  if (!step) return notify("Nothing to undo since this page was opened.");
  if (step.page !== page.page) await openPage(step.page);
  current = step.current;
  change(step.verdicts);
}

async function goToUndecided() {
  await saving;
  const after = page.page * page.page_size + current;
  const { position } = await request(urlOf("api/undecided", { after }));
  if (position === null) return notify("All pictures are decided. Press a to apply the verdicts.");
  const number = Math.floor(position / page.page_size);
  if (number !== page.page) await openPage(number, position % page.page_size);
  else await moveTo(position % page.page_size);
}

function openZoom() {
  if (suspect()) $("zoom").showModal();
}

async function askToApply() {
  await saving;
  const { decided, counts } = page.progress;
  if (!decided) return notify("Nothing is decided yet.");
  const parts = Object.keys(NAMES).filter((each) => counts[each]).map((each) => `${counts[each]} ${each}`);
  $("apply-number").textContent = plural(decided, "verdict");
  $("apply-text").textContent = parts.join(", ");
  $("apply-dialog").showModal();
  $("apply-yes").focus();
}

async function apply() {
  $("apply-dialog").close();
  notify("Applying ...");
  $("apply").disabled = true;
  try {
    const { generation, num_applied } = await request(urlOf("api/apply"), {});
    undone.length = 0;
    nearestOf.clear();
    await openPage(0);
    notify(`Committed generation ${generation} with ${plural(num_applied, "verdict")}.`);
  } catch (error) {
    $("apply").disabled = false;
    notify(error.message, { bad: true });
  }
}

const KEYS = {
  ArrowLeft: () => moveTo(current - 1), h: () => moveTo(current - 1),
  ArrowRight: () => moveTo(current + 1), l: () => moveTo(current + 1),
  ArrowUp: () => moveTo(Math.max(current - columns(), 0)), k: () => moveTo(Math.max(current - columns(), 0)),
  ArrowDown: () => moveTo(Math.min(current + columns(), suspects().length - 1)),
  j: () => moveTo(Math.min(current + columns(), suspects().length - 1)),
  p: () => decide("positive"), n: () => decide("negative"), d: () => decide("drop"),
  P: () => decide("positive", { rest: true }), N: () => decide("negative", { rest: true }),
  D: () => decide("drop", { rest: true }),
  u: undo, " ": goToUndecided,
  "[": () => page.page > 0 && openPage(page.page - 1),
  "]": () => page.page + 1 < page.num_pages && openPage(page.page + 1),
  Enter: () => ($("zoom").open ? $("zoom").close() : openZoom()),
  a: askToApply, "?": () => $("help-dialog").showModal(),
};

document.addEventListener("keydown", (event) => {
  if ($("help-dialog").open || $("apply-dialog").open || event.target.id === "target") return;
  const act = KEYS[keyOf(event)];
  if (!act) return;
  event.preventDefault(); // or space would scroll, and Enter press a button
  run(act);
});

for (const button of document.querySelectorAll("#inspector .verdicts button")) {
  button.addEventListener("click", () => {
    button.blur(); // or space would press it again
    run(() => decide(button.dataset.verdict));
  });
}
const onClick = {
  apply: askToApply, "apply-yes": apply, "apply-no": () => $("apply-dialog").close(),
  help: KEYS["?"], picture: openZoom, zoom: () => $("zoom").close(),
  "help-dialog": () => $("help-dialog").close(), previous: KEYS["["], next: KEYS["]"],
};
for (const [id, act] of Object.entries(onClick)) $(id).addEventListener("click", () => run(act));
$("target")?.addEventListener("change", (event) => {
  location.search = new URLSearchParams({ target: event.target.value });
});

// Start at the first undecided picture.
run(async () => {
  await openPage(0);
  if (page.num_pages > 0 && page.progress.decided < page.progress.total) {
    const { position } = await request(urlOf("api/undecided"));
    await openPage(Math.floor(position / page.page_size), position % page.page_size);
  }
});
