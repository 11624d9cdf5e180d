"use strict";
// Grid, picture, keys. Texts from the server are set as text, never as HTML.

const NAMES = { positive: "Target", negative: "Not", unsure: "Unsure", skip: "Skipped" };
const WHY = {
  uncertain: "the head is least sure of it", suspected: "the head suspects the target",
  hardest: "a hard negative", unlike: "taken for the target, though no positive resembles it",
  random: "drawn at random",
};
const FACTS = [
  ["why", "Chosen"], ["source", "Source"], ["class_name", "Class"], ["label_state", "Label"],
  ["stratum", "Stratum"], ["similarity", "Similarity"], ["uri", "URI"], ["author", "Author"],
  ["license", "License"], ["key", "Key"],
];
const RATES = [
  ["precision", "Precision at the threshold", 100, " %"],
  ["false_positives", "False positives per 1,000", 1, ""],
  ["missed", "Missed per 1,000", 1, ""],
];

let state = null; // the server's last answer
let current = 0; // position on the page
let anchor = null; // where a choice of several began
const chosen = new Set(); // positions of several
const undone = []; // steps to undo: {round, verdicts: {id: verdict before}}
let saving = Promise.resolve(); // changes are sent one after another
let isChoosing = false;

const pictures = () => (state ? state.pictures : []);
const shown = () => pictures()[current];
const numRated = () => pictures().filter((each) => each.verdict).length;

// First the preview of the pool, if reading the picture may take a while.
function load(image, each) {
  const full = `pictures/${each.id}`;
  if (image.dataset.wanted === each.id) return;
  image.dataset.wanted = each.id;
  image.alt = "";
  image.onerror = () => { image.alt = "cannot be read"; };
  if (!each.has_preview) {
    image.src = full;
    return;
  }
  image.src = `previews/${each.id}`;
  const whole = new Image();
  whole.addEventListener("load", () => { if (image.dataset.wanted === each.id) image.src = full; });
  whole.src = full;
}

function openRound(answer) {
  state = answer;
  chosen.clear();
  current = Math.max(0, pictures().findIndex((each) => !each.verdict));
  $("grid").replaceChildren(...pictures().map(makeCard));
  $("round").textContent = state.round;
  $("stage").hidden = pictures().length === 0;
  showLearned(state.learned);
  show();
  if (pictures().length === 0) notify("No candidate is left to be chosen.");
}

function makeCard(each) {
  const image = element("img", { alt: "", draggable: "false" });
  load(image, each);
  const card = element(
    "button", { class: "card", role: "option", tabindex: "-1", "data-id": each.id },
    image, element("span", { class: "verdict" }),
  );
  card.addEventListener("dblclick", openZoom);
  return card;
}

function labelOf(each, number) {
  const what = [each.class_name, each.source].filter(Boolean).join(" of ");
  return `Picture ${number + 1} of ${pictures().length}, ${what}, ${each.verdict ? NAMES[each.verdict] : "not rated"}`;
}

function show() {
  [...$("grid").children].forEach((card, number) => {
    const each = pictures()[number];
    card.setAttribute("aria-label", labelOf(each, number));
    card.setAttribute("aria-selected", chosen.has(number));
    card.toggleAttribute("data-current", number === current);
    card.setAttribute("tabindex", number === current ? "0" : "-1");
    card.querySelector(".verdict").textContent = each.verdict ? NAMES[each.verdict] : "";
    if (each.verdict) card.dataset.verdict = each.verdict;
    else delete card.dataset.verdict;
  });
  $("rated").textContent = numRated();
  $("total").textContent = pictures().length;
  $("bar").max = Math.max(pictures().length, 1);
  $("bar").value = numRated();
  const each = shown();
  if (!each) return;
  const card = $("grid").children[current];
  card.scrollIntoView({ block: "nearest", inline: "center" });
  // So that a screen reader follows.
  if (document.activeElement === document.body || document.activeElement.matches(".card")) {
    card.focus({ preventScroll: true });
  }
  load($("picture").firstChild, each);
  $("caption").textContent = chosen.size > 1
    ? `${chosen.size} chosen: the next verdict is for all of them`
    : `${current + 1} of ${pictures().length}`;
  for (const button of document.querySelectorAll(".verdicts button")) {
    const isChosen = button.dataset.verdict === each.verdict;
    button.classList.toggle("chosen", isChosen);
    button.setAttribute("aria-pressed", isChosen);
  }
  const facts = { ...each, why: WHY[each.why] ?? each.why, similarity: each.similarity?.toFixed(3) };
  showFacts(FACTS, facts);
  if ($("zoom").open) load($("zoom").firstChild, each);
}

const number = (value) => (value >= 10 ? value.toFixed(0) : value.toPrecision(2));
function textOf(rate, factor, unit) {
  if (rate.n === 0) return ["", "after the first round"];
  const middle = rate.value === null ? "?" : number(rate.value * factor) + unit;
  return [middle, `[${number(rate.low * factor)}, ${number(rate.high * factor)}]`];
}

function showLearned(learned) {
  const { now, before, changed, counts, disagreements } = learned;
  $("learned").setAttribute("aria-busy", learned.is_learning);
  $("learning").textContent = learned.is_learning ? "learning ..." : `from ${plural(now.num_rated, "verdict")}`;
  $("rates").replaceChildren(...RATES.map(([name, title, factor, unit]) => {
    const [middle, interval] = textOf(now[name], factor, unit);
    const was = before[name].n ? `was ${textOf(before[name], factor, unit).join(" ")}` : "";
    return element(
      "tr", {}, element("th", { scope: "row" }, title, element("div", { class: "quiet" }, `${now[name].n} drawn and rated`)),
      element("td", { "data-rate": name }, element("b", {}, middle), " ", interval, element("div", { class: "quiet" }, was)),
    );
  }));
  const said = Object.keys(NAMES).filter((each) => counts[each]).map((each) => `${counts[each]} ${NAMES[each].toLowerCase()}`);
  $("counts").textContent = `${now.num_called.toLocaleString("en")} of ${state.num_candidates.toLocaleString("en")} candidates are called the target. Said so far: ${said.join(", ") || "nothing"}.`
    + (state.num_without ? ` ${plural(state.num_without, "candidate")} without embedding left out.` : "");
  const sides = [["joined", "Now called"], ["left", "No longer called"]].filter(([side]) => changed[side].num);
  $("changed").replaceChildren(...sides.flatMap(([side, title]) => [
    element("h3", {}, `${title} since this round began: ${changed[side].num.toLocaleString("en")}`),
    element("div", { class: "thumbs" }, ...changed[side].pictures.map((id) => element("img", { src: `pictures/${id}`, alt: "", loading: "lazy" }))),
  ]));
  $("disagreements").replaceChildren(...(disagreements.length ? [
    element("h3", {}, `People disagree on ${plural(disagreements.length, "picture")}; these are not applied`),
    element("div", { class: "thumbs" }, ...disagreements.map((each) => element(
      "figure", {}, element("img", { src: `pictures/${each.content_hash}`, alt: each.key }),
      ...Object.entries(each.verdicts).map(([rater, verdict]) => element("div", {}, `${rater}: ${NAMES[verdict]}`)),
    ))),
  ] : []));
  if (learned.is_learning) follow();
}

let isFollowing = false;
async function follow() {
  if (isFollowing) return;
  isFollowing = true;
  try {
    for (let is = true; is;) {
      await new Promise((resolve) => setTimeout(resolve, 700));
      const learned = await request("api/learned");
      is = learned.is_learning;
      showLearned(learned);
    }
  } catch (error) {
    notify(error.message, { bad: true });
  } finally {
    isFollowing = false;
  }
}

function moveTo(position, { extends: isMore = false } = {}) {
  const to = Math.max(0, Math.min(position, pictures().length - 1));
  chosen.clear();
  if (isMore) {
    anchor ??= current;
    for (let n = Math.min(anchor, to); n <= Math.max(anchor, to); n += 1) chosen.add(n);
  } else anchor = null;
  current = to;
  show();
  if (shown()) say(labelOf(shown(), current));
}

const columns = () => getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
function nextOpen(after) {
  const num = pictures().length;
  for (let n = 1; n <= num; n += 1) if (!pictures()[(after + n) % num].verdict) return (after + n) % num;
  return null;
}

// Shows the verdicts immediately, and reads the round again if they cannot be saved.
function change(verdicts) {
  const before = {};
  for (const each of pictures()) {
    if (each.id in verdicts) {
      before[each.id] = each.verdict;
      each.verdict = verdicts[each.id];
    }
  }
  saving = saving.then(async () => {
    try {
      showLearned(await request("api/verdicts", { verdicts }));
    } catch (error) {
      await request("api/state").then(openRound).catch(() => {});
      notify(`Not saved: ${error.message}`, { bad: true });
    }
  });
  return before;
}

function decide(verdict, { rest = false } = {}) {
  if (!shown() || isChoosing) return undefined;
  notify("");
  const positions = chosen.size ? [...chosen]
    : rest ? pictures().map((_, n) => n).filter((n) => n === current || (n > current && !pictures()[n].verdict))
      : [current];
  const verdicts = Object.fromEntries(positions.map((n) => [pictures()[n].id, verdict]));
  undone.push({ round: state.round, verdicts: change(verdicts) });
  const open = nextOpen(Math.max(...positions));
  moveTo(open ?? current);
  const what = positions.length > 1 ? `${NAMES[verdict]}, ${positions.length} pictures` : NAMES[verdict];
  say(`${what}. ${labelOf(shown(), current)}`);
  return open === null ? chooseNext() : undefined;
}

function undo() {
  const step = undone.pop();
  if (!step) return notify("Nothing to take back since this page was opened.");
  change(step.verdicts);
  chosen.clear();
  const position = pictures().findIndex((each) => each.id in step.verdicts);
  if (position >= 0) moveTo(position);
  else show();
  const where = step.round === state.round ? "" : ` of round ${step.round}`;
  return notify(`Taken back: ${plural(Object.keys(step.verdicts).length, "verdict")}${where}.`);
}

async function chooseNext() {
  isChoosing = true;
  $("next").disabled = true;
  notify("Choosing the next round ...");
  try {
    await saving;
    openRound(await request("api/next", {}));
    if (pictures().length) notify(`Round ${state.round}: chosen by a head that knows ${plural(state.learned.now.num_rated, "verdict")}.`);
  } finally {
    isChoosing = false;
    $("next").disabled = false;
  }
}

function openZoom() {
  if (!shown()) return;
  $("zoom").showModal();
  load($("zoom").firstChild, shown());
}

async function askToApply() {
  await saving;
  const { counts } = state.learned = await request("api/learned");
  const parts = ["positive", "negative"].filter((each) => counts[each]).map((each) => `${counts[each]} ${NAMES[each].toLowerCase()}`);
  if (!parts.length) return notify("Nothing is rated as target or not yet.");
  $("apply-text").textContent = `${parts.join(", ")}. What is unsure, skipped or disputed changes nothing.`;
  $("apply-dialog").showModal();
  return $("apply-yes").focus();
}

async function apply() {
  $("apply-dialog").close();
  notify("Applying: pictures are read from their sources ...");
  $("apply").disabled = true;
  try {
    const { generation, num_applied } = await request("api/apply", {});
    openRound(await request("api/state"));
    notify(`Committed generation ${generation} with ${plural(num_applied, "verdict")}.`);
  } finally {
    $("apply").disabled = false;
  }
}

const KEYS = {
  ArrowLeft: (event) => moveTo(current - 1, event), ArrowRight: (event) => moveTo(current + 1, event),
  ArrowUp: (event) => moveTo(current - columns(), event), ArrowDown: (event) => moveTo(current + columns(), event),
  " ": () => moveTo(nextOpen(current) ?? current),
  u: undo, r: chooseNext, a: askToApply, "?": () => $("help-dialog").showModal(),
  Enter: () => ($("zoom").open ? $("zoom").close() : openZoom()),
};
const VERDICTS = { p: "positive", n: "negative", m: "unsure", s: "skip", 1: "negative", 2: "skip", 3: "unsure", 4: "positive" };
for (const [key, verdict] of Object.entries(VERDICTS)) {
  KEYS[key] = () => decide(verdict);
  if (/[a-z]/.test(key)) KEYS[key.toUpperCase()] = () => decide(verdict, { rest: true });
}

document.addEventListener("keydown", (event) => {
  if ($("help-dialog").open || $("apply-dialog").open) return;
  const act = KEYS[keyOf(event)];
  if (!act) return;
  event.preventDefault(); // or space would scroll, and Enter press a button
  run(() => act({ extends: event.shiftKey }));
});

// Several at once by the mouse; a finger scrolls.
let isDragging = false;
const cardAt = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".card");
$("grid").addEventListener("pointerdown", (event) => {
  const card = event.target.closest(".card");
  if (!card) return;
  isDragging = event.pointerType !== "touch" && event.button === 0;
  const position = [...$("grid").children].indexOf(card);
  if (isDragging) run(() => moveTo(position, { extends: event.shiftKey }));
});
$("grid").addEventListener("click", (event) => {
  const card = event.target.closest(".card");
  if (card && chosen.size < 2) run(() => moveTo([...$("grid").children].indexOf(card)));
});
document.addEventListener("pointermove", (event) => {
  if (!isDragging) return;
  const card = cardAt(event);
  const position = card ? [...$("grid").children].indexOf(card) : -1;
  if (position >= 0 && position !== current) run(() => moveTo(position, { extends: true }));
});
document.addEventListener("pointerup", () => { isDragging = false; });

for (const button of document.querySelectorAll(".verdicts button")) {
  button.addEventListener("click", () => {
    button.blur(); // or space would press it again
    run(() => decide(button.dataset.verdict));
  });
}
const onClick = {
  undo, next: chooseNext, apply: askToApply, "apply-yes": apply, "apply-no": () => $("apply-dialog").close(),
  help: KEYS["?"], picture: openZoom, zoom: () => $("zoom").close(), "help-dialog": () => $("help-dialog").close(),
};
for (const [id, act] of Object.entries(onClick)) $(id).addEventListener("click", () => run(act));

run(async () => openRound(await request("api/state")));
