// Keeps an open page up to date: every two seconds its content is fetched, and replaced where it has changed. What the
// reader has opened stays open.
"use strict";
const PERIOD_MS = 2000;
const main = document.querySelector("main");
let tag = null;

async function update() {
  try {
    const headers = tag ? {"If-None-Match": tag} : {};
    const answer = await fetch(`${location.pathname}?part=body`, {headers, cache: "no-store"});
    if (answer.ok) {
      tag = answer.headers.get("ETag");
      show(await answer.text());
    }
    document.getElementById("lost")?.remove();
  } catch {
    if (!document.getElementById("lost")) {
      main.insertAdjacentHTML("afterbegin", '<p id="lost" role="alert">The dashboard does not answer; this is what it said last.</p>');
    }
  }
  setTimeout(update, PERIOD_MS);
}

function show(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const content = fresh.querySelector("main") ?? fresh.body;
  const open = new Set([...main.querySelectorAll("details[open]")].map((details) => details.dataset.key));
  for (const details of content.querySelectorAll("details[data-key]")) details.open = open.has(details.dataset.key);
  main.replaceChildren(...content.childNodes);
  document.title = fresh.title || document.title;
}

setTimeout(update, PERIOD_MS);
