// One picture at a time: accept, edit or reject its captions by keyboard. The server keeps every decision.
"use strict";

const $ = (id) => document.getElementById(id);
const TOLD = { accept: "Accepted", edit: "Edited", reject: "Rejected" };
let state = { items: [], at: 0 };
let shown = null; // the picture on screen, as the server told it
let editing = false;
const undone = []; // numbers of the pictures that were decided, latest last

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function count() {
  const decided = state.items.filter((item) => item.decision).length;
  $("progress").max = state.items.length;
  $("progress").value = decided;
  $("counts").textContent = `${state.at + 1} of ${state.items.length}; ${decided} decided`;
  document.title = `${decided}/${state.items.length} limner review`;
}

async function show(at) {
  state.at = Math.max(0, Math.min(state.items.length - 1, at));
  setEditing(false);
  shown = await ask(`api/picture/${state.at}`);
  $("picture").src = `picture/${state.at}`;
  $("name").textContent = shown.image_id;
  $("captions").value = shown.captions.join("\n");
  const item = state.items[state.at];
  $("decision").textContent = item.decision ? TOLD[item.decision] : "";
  $("decision").className = item.decision || "";
  if (state.at + 1 < state.items.length) new Image().src = `picture/${state.at + 1}`; // ready when wanted
  count();
}

function setEditing(on) {
  editing = on;
  $("captions").readOnly = !on;
  for (const id of ["save", "cancel"]) $(id).hidden = !on;
  for (const id of ["accept", "edit", "reject"]) $(id).hidden = on;
  if (on) $("captions").focus();
  else $("captions").blur();
}

async function decide(decision) {
  const captions = $("captions").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const answer = await ask(`api/picture/${state.at}`, { decision, captions });
  state.items[state.at].decision = answer.decision;
  if (decision) undone.push(state.at);
  const last = state.at === state.items.length - 1;
  await show(last ? state.at : state.at + 1);
}

async function undo() {
  const at = undone.length ? undone.pop() : state.at;
  await ask(`api/picture/${at}`, { decision: null, captions: [] });
  state.items[at].decision = null;
  await show(at);
}

function nextUndecided() {
  const order = state.items.map((_, i) => (state.at + 1 + i) % state.items.length);
  const found = order.find((i) => !state.items[i].decision);
  return found === undefined ? tell("Every picture is decided.") : show(found);
}

function tell(text) {
  $("message").textContent = text;
}

const ACTIONS = {
  accept: () => decide("accept"),
  edit: () => setEditing(true),
  save: () => decide("edit"),
  cancel: () => show(state.at),
  reject: () => decide("reject"),
  previous: () => show(state.at - 1),
  next: () => show(state.at + 1),
  undecided: nextUndecided,
  undo,
};
const KEYS = {
  Enter: "accept", e: "edit", x: "reject", Delete: "reject", ArrowLeft: "previous", ArrowRight: "next",
  n: "undecided", u: "undo",
};

let line = Promise.resolve(); // actions wait for each other: none is lost, however fast the keys
let editComing = false; // what is typed meanwhile is text for a box that is not open yet, and no command
function act(name) {
  if (name === "edit") editComing = true;
  line = line.then(async () => {
    tell("");
    try {
      await ACTIONS[name]();
    } catch (error) {
      tell(error.message);
    } finally {
      if (name === "edit") editComing = false;
    }
  });
}

document.addEventListener("keydown", (event) => {
  if (editComing) {
    event.preventDefault();
    return;
  }
  let name;
  if (editing) {
    if (event.key === "Escape") name = "cancel";
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) name = "save";
  } else if (!event.ctrlKey && !event.metaKey && !event.altKey && event.target.tagName !== "BUTTON") {
    name = KEYS[event.key];
  } else if (event.target.tagName === "BUTTON" && event.key !== "Enter" && event.key !== " ") {
    name = KEYS[event.key];
  }
  if (name) {
    event.preventDefault();
    act(name);
  }
});
for (const name of Object.keys(ACTIONS)) {
  $(name).addEventListener("click", () => {
    $(name).blur();
    act(name);
  });
}

ask("api/state").then((answer) => {
  state = answer;
  return show(state.at);
}).catch((error) => tell(error.message));
