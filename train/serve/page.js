"use strict";
// Camera, files, drop and paste to POST predict, the answer, and the history of this page.
// Names of files and targets are set as text, never as HTML.

const MAX_ENTRIES = 60; // of the history, oldest first out
const MAX_TRIES = 6; // while the server is busy
const PREVIEW_SIDE = 900; // pixels of the longer side: the history holds no full pictures

const $ = (id) => document.getElementById(id);
const maxBytes = Number(document.body.dataset.maxBytes);
const entries = []; // newest first: {name, preview, answer}
let shown = null;
let asking = Promise.resolve(); // pictures are asked about one after another

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Percent with so many digits that it differs from 0, 100 and what lies beside it.
function percent(share) {
  const distance = Math.max(Math.min(share, 1 - share), 1e-9);
  const digits = Math.max(1, -Math.floor(Math.log10(distance)) - 1);
  return `${(100 * share).toFixed(digits)} %`;
}

const whole = (number) => Math.round(number).toLocaleString("en");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function complain(text) {
  $("problem").hidden = text === "";
  $("problem").textContent = text;
}

// Upright and small; "" where the browser cannot show the format.
async function makePreview(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return "";
  }
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // as the detector sees what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
  return blob ? URL.createObjectURL(blob) : "";
}

async function predict(file) {
  if (file.size > maxBytes) {
    throw new Error(`the picture is larger than ${maxBytes / 1e6} MB: send a smaller one`);
  }
  for (let tries = 1; ; tries += 1) {
    const form = new FormData();
    form.append("image", file);
    let response;
    try {
      // Relative: the address of the page may begin with a token.
      response = await fetch("predict?nearest=true", { method: "POST", body: form });
    } catch {
      throw new Error("the server does not answer, or the file cannot be read any more");
    }
    if (response.status === 503 && tries < MAX_TRIES) {
      const wait = Number(response.headers.get("Retry-After")) || 1;
      await pause(1000 * wait * (0.5 + Math.random()));
      continue;
    }
    const answer = await response.json().catch(() => ({ detail: response.statusText }));
    if (!response.ok) throw new Error(answer.detail);
    return answer;
  }
}

function showPicture(name, preview) {
  $("result").classList.remove("empty");
  $("picture").hidden = false;
  $("picture").classList.toggle("unseen", !preview);
  const [image, caption] = $("picture").children;
  if (preview) image.src = preview;
  else image.removeAttribute("src");
  caption.textContent = preview ? name : `${name} (no preview)`;
}

// The target that the answer is about: the label, or the most probable one.
function targetOf(answer) {
  if (answer.label) return answer.label;
  return Object.entries(answer.probabilities).reduce((a, b) => (b[1] > a[1] ? b : a))[0];
}

function textOf(answer) {
  if (answer.label) return answer.label;
  const names = Object.keys(answer.probabilities);
  return names.length === 1 ? `not ${names[0]}` : `none of ${names.join(", ")}`;
}

function show(entry) {
  shown = entry;
  const { answer } = entry;
  const target = targetOf(answer);
  showPicture(entry.name, entry.preview);
  $("answer").replaceChildren(
    element("p", { class: answer.label ? "label yes" : "label" }, textOf(answer)),
    element("p", { class: "share" }, `${percent(answer.probabilities[target])} probability of ${target}`),
  );
  const rare = answer.one_in < 1.5
    ? `Nearly all pictures of other things look at least this much like ${target}.`
    : `One in ${whole(answer.one_in)} pictures of other things looks this much like ${target}.`;
  const details = [
    ...Object.keys(answer.probabilities).map((name) => makeMeter(name, answer)),
    element("p", { class: "rare" }, rare),
  ];
  if (answer.prior !== null) {
    const text = `Probabilities are for a prior of ${percent(answer.prior)}: the share of all pictures that show it.`;
    details.push(element("p", {}, text));
  }
  $("details").replaceChildren(...details);
  showNearest(answer.nearest);
  showHistory();
}

// The training pictures that the answer is explained by, those of the target first.
function showNearest(nearest) {
  for (const image of $("alike").querySelectorAll("img")) URL.revokeObjectURL(image.src);
  const alike = nearest ? [...nearest.positives, ...nearest.negatives] : [];
  $("nearest").hidden = alike.length === 0;
  $("alike").replaceChildren(...alike.map((each) => {
    const what = each.label || "something else";
    const jpeg = Uint8Array.from(atob(each.preview), (letter) => letter.charCodeAt(0));
    const image = element("img", {
      src: URL.createObjectURL(new Blob([jpeg], { type: "image/jpeg" })),
      alt: "", title: `${each.source}: ${each.key}`,
    });
    const text = element("span", {}, what, element("small", {}, each.similarity.toFixed(2)));
    return element("li", each.label ? { class: "yes" } : {}, image, text);
  }));
}

function makeMeter(name, answer) {
  const share = answer.probabilities[name];
  const threshold = answer.thresholds[name];
  const texts = [percent(share), `threshold ${percent(threshold)}`];
  const fill = element("i", name === answer.label ? { class: "yes" } : {});
  const tick = element("b");
  fill.style.width = `${100 * share}%`;
  tick.style.left = `${100 * threshold}%`;
  const bar = element("div", {
    class: "bar", role: "meter", "aria-label": `probability of ${name}`, "aria-valuemin": "0",
    "aria-valuemax": "1", "aria-valuenow": String(share), "aria-valuetext": texts.join(", "),
  }, fill, tick);
  const isOnly = Object.keys(answer.probabilities).length === 1; // then it is said above
  const words = isOnly ? "" : `${name} ${texts[0]}`;
  const line = element("p", {}, element("span", {}, words), element("span", {}, texts[1]));
  return element("div", { class: "meter" }, line, bar);
}

function showHistory() {
  $("history").hidden = entries.length === 0;
  $("entries").replaceChildren(...entries.map((entry) => {
    const { answer, name, preview } = entry;
    const target = targetOf(answer);
    const button = element(
      "button", { "aria-current": String(entry === shown) },
      preview ? element("img", { src: preview, alt: "" }) : element("span", { class: "unseen" }),
      element(
        "span", {},
        element("b", answer.label ? { class: "yes" } : {}, textOf(answer)),
        element("small", {}, `${percent(answer.probabilities[target])} ${target}`),
        element("small", {}, name),
      ),
    );
    button.addEventListener("click", () => {
      show(entry);
      const again = $("entries").children[entries.indexOf(entry)].firstChild;
      again.focus({ preventScroll: true }); // the list was made anew
      $("result").scrollIntoView({ block: "nearest" });
    });
    return element("li", {}, button);
  }));
}

function remember(entry) {
  entries.unshift(entry);
  for (const old of entries.splice(MAX_ENTRIES)) URL.revokeObjectURL(old.preview);
}

async function ask(file) {
  const name = file.name || "picture";
  const preview = await makePreview(file);
  showPicture(name, preview);
  $("answer").replaceChildren(element("p", { class: "quiet" }, "Looking ..."));
  $("details").replaceChildren();
  $("result").scrollIntoView({ block: "nearest" });
  try {
    const answer = await predict(file);
    const entry = { name, preview, answer };
    remember(entry);
    show(entry);
  } catch (error) {
    complain(`${name}: ${error.message}`);
    $("answer").replaceChildren(element("p", { class: "quiet" }, "No answer for this picture."));
    shown = null;
    showHistory();
  }
}

function askAll(files) {
  if (files.length === 0) return;
  complain("");
  for (const file of files) {
    asking = asking.then(() => ask(file)).catch((error) => complain(error.message));
  }
}

// On a phone its own camera app; elsewhere a window with the picture of the webcam.
async function openCamera() {
  const isPhone = matchMedia("(pointer: coarse)").matches;
  if (isPhone || !navigator.mediaDevices) { // http:// from another machine has none
    $("camera-file").click();
    return;
  }
  complain("");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1280 } });
  } catch (error) {
    complain(`No camera can be used (${error.message}): choose a picture instead.`);
    return;
  }
  $("viewfinder").querySelector("video").srcObject = stream;
  $("viewfinder").showModal();
}

function shoot() {
  const video = $("viewfinder").querySelector("video");
  const canvas = element("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  if (!canvas.width) return; // no picture has come yet
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => askAll([new File([blob], "camera.jpg", { type: blob.type })]), "image/jpeg", 0.95);
  $("viewfinder").close();
}

$("camera").addEventListener("click", openCamera);
$("choose").addEventListener("click", () => $("files").click());
$("shoot").addEventListener("click", shoot);
$("stop").addEventListener("click", () => $("viewfinder").close());
$("viewfinder").addEventListener("close", () => {
  for (const track of $("viewfinder").querySelector("video").srcObject.getTracks()) track.stop();
});
for (const id of ["files", "camera-file"]) {
  $(id).addEventListener("change", ({ target }) => {
    askAll([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length === 0) complain("What was pasted holds no picture.");
  askAll(files);
});
document.addEventListener("dragenter", (event) => {
  if ([...event.dataTransfer.types].includes("Files")) $("drop").hidden = false;
});
document.addEventListener("dragover", (event) => event.preventDefault());
$("drop").addEventListener("dragleave", () => { $("drop").hidden = true; });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").hidden = true;
  askAll([...event.dataTransfer.files]);
});
