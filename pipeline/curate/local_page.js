"use strict";
// What the scripts of all local pages share; loaded before page.js.

const $ = (id) => document.getElementById(id);
const token = document.querySelector("meta[name=page-token]").content;
let acting = Promise.resolve(); // the effects of keys and clicks, one after another

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Relative: the address of the page begins with its secret.
async function request(url, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Page-Token": token },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    const { command } = document.body.dataset;
    throw new Error(`The server does not answer. Start \`${command}\` again; saved verdicts are kept.`);
  }
  const answer = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) {
    const { detail } = answer;
    throw new Error(typeof detail === "string" ? detail : JSON.stringify(detail));
  }
  return answer;
}

function notify(text, { bad = false } = {}) {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
  $("notice").classList.toggle("bad", bad);
  if (text) say(text);
}

// To a screen reader, where the page has a place of its own for it.
function say(text) {
  if ($("said")) $("said").textContent = text;
}

const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// names: pairs of a fact and its title; those without a value are left out.
function showFacts(names, facts) {
  $("facts").replaceChildren(...names.filter(([name]) => facts[name]).flatMap(
    ([name, title]) => [element("dt", {}, title), element("dd", {}, String(facts[name]))],
  ));
}

// In order, however fast they are typed: an effect may have to wait for the server.
function run(act) {
  acting = acting.then(act).catch((error) => notify(error.message, { bad: true }));
}

// The key if it is meant for the page, else null.
function keyOf(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return null;
  // After Tab, Enter and space press the button that has the focus.
  if ((event.key === "Enter" || event.key === " ") && event.target.closest("button:not(.card), summary")) return null;
  // Shift and not the case of the letter: caps lock must not decide a whole page.
  const isLetter = /^[a-z]$/i.test(event.key);
  return isLetter ? event.key[event.shiftKey ? "toUpperCase" : "toLowerCase"]() : event.key;
}
