// The chat page. Everything it shows comes from the proxy on this machine; nothing is stored unless saved.
"use strict";

const $ = (id) => document.getElementById(id);
const state = {
  model: null, messages: [], publicText: "", running: null, sample: 0, base: null, total: null,
  token: "", locked: false,
};

function fresh() {
  return { tokens: 0, seconds: 0, up: 0, down: 0, rounds: 0, cached: 0, prepared: null };
}
state.total = fresh();

// ---- the proxy may want a token; it is kept in this page's memory only

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  const reply = await fetch(path, { ...options, headers });
  if (reply.status === 401) lock(true);
  return reply;
}

function lock(locked) {
  state.locked = locked;
  $("unlock").hidden = !locked;
  $("ask").hidden = locked;
  if (!locked) return;
  if (!state.model) $("model").textContent = "locked";
  $("refused").textContent = state.token ? "that is not the token" : "";
  $("token").focus();
}

// ---- what the model is, and who learns what

async function describe() {
  if (state.locked) return;
  try {
    const reply = await request("/v1/models");
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error.message);
    state.model = found.data[0];
    const about = state.model.sottovoce;
    $("model").textContent = `${state.model.id} at ${about.server}`;
    const [protection, where] = about.privacy.protection.split("; ");
    $("protection").textContent = protection;
    $("protection").classList.toggle("open", about.engine === "clear");
    $("sees").textContent = [about.privacy.server, where].filter(Boolean).join("; ");
    $("most").max = state.model.max_model_len;
    $("most").value = Math.min(Number($("most").value), Math.floor(state.model.max_model_len / 2));
    say("");
  } catch (error) {
    say(`${error.message || error}`);
    if (!state.locked) setTimeout(describe, 3000);
  }
}

function say(text) { $("status").textContent = text; }

// ---- asking

async function ask(text) {
  if (!state.model) await describe();
  if (!state.model || state.running) return;
  state.messages.push({ role: "user", content: text });
  show("user", text);
  const answer = show("assistant", "");
  answer.classList.add("growing");
  const control = new AbortController();
  state.running = control;
  busy(true);
  const started = performance.now();
  const shown = { ...state.total };
  let said = "", pieces = 0;
  const tick = setInterval(() => {
    const seconds = (performance.now() - started) / 1000;
    meter({ ...shown, tokens: shown.tokens + pieces, seconds: shown.seconds + seconds, ...wireCost(shown) });
  }, 250);
  try {
    await watch();  // what goes over the wire from here on is this answer's
    const usage = await stream(control.signal, (piece) => {
      said += piece;
      pieces += 1;
      answer.textContent = said;
      follow($("talk"));
    });
    if (usage) book(usage);
  } catch (error) {
    if (error.name !== "AbortError") show("problem", error.message || String(error));
  } finally {
    clearInterval(tick);
    answer.classList.remove("growing");
    if (said) state.messages.push({ role: "assistant", content: said });
    else { state.messages.pop(); answer.remove(); }
    await watch();
    state.running = state.base = null;
    meter(state.total);
    busy(false);
  }
}

function history() {
  const published = state.publicText ? [{ role: "system", content: state.publicText, private: false }] : [];
  return [...published, ...state.messages];
}

async function stream(signal, onPiece) {
  const reply = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    signal,
    body: JSON.stringify({
      model: state.model.id, messages: history(), stream: true, max_tokens: Number($("most").value) || 64,
      stream_options: { include_usage: true },
    }),
  });
  if (!reply.ok) throw new Error((await reply.json()).error.message);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "", usage = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return usage;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (event.startsWith(": ")) { say(event.slice(2).replace("sottovoce: ", "")); continue; }
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new Error(data.error.message);
      if (data.usage) usage = data.usage;
      const piece = data.choices.length ? data.choices[0].delta.content : "";
      if (piece) { say(""); onPiece(piece); }
    }
  }
}

function book(usage) {
  const mine = usage.sottovoce, total = state.total;
  total.tokens += usage.completion_tokens;
  total.seconds += mine.seconds;
  total.up += mine.bytes_up;
  total.down += mine.bytes_down;
  total.rounds += mine.rounds;
  total.cached += usage.prompt_tokens_details.cached_tokens;
  if (mine.prepared_tokens !== null) total.prepared = (total.prepared || 0) + mine.prepared_tokens;
  if (mine.notes.length) say(mine.notes.join("; "));
}

function busy(running) {
  $("send").hidden = running;
  $("stop").hidden = !running;
  for (const id of ["new", "load", "publish"]) $(id).disabled = running;
  $("save").disabled = running || !state.messages.length;
  $("publish").disabled = running || state.messages.length > 0;
  if (!running) $("message").focus();
}

// ---- what is on the page

function show(kind, text) {
  const empty = $("talk").querySelector(".empty");
  if (empty) empty.remove();
  const item = document.createElement("li");
  item.className = kind;
  item.textContent = text;
  $("talk").append(item);
  follow($("talk"));
  return item;
}

function follow(box) { box.scrollTop = box.scrollHeight; }

function size(bytes) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (bytes < 1000 || unit === "GB") return `${unit === "B" ? bytes : bytes.toPrecision(3)} ${unit}`;
    bytes /= 1000;
  }
}

function meter(total) {
  $("tokens").textContent = total.tokens;
  $("seconds").textContent = total.seconds.toFixed(1);
  $("pace").textContent = total.tokens ? (total.seconds / total.tokens).toFixed(2) : "–";
  $("up").textContent = size(total.up);
  $("down").textContent = size(total.down);
  $("rounds").textContent = state.running ? "…" : total.rounds;
  $("cached").textContent = total.cached;
  $("prepared").textContent = total.prepared === null ? "–" : total.prepared;
}

// ---- the other side of the wire

async function watch() {
  let found;
  try {
    const reply = await request(`/sottovoce/wire?since=${state.sample}`);
    if (!reply.ok) return;
    found = await reply.json();
  } catch { return; }
  state.wire = found.bytes;
  if (state.running && !state.base) state.base = found.bytes;
  for (const sample of found.samples) {
    state.sample = sample.number;
    if (sample.to === "server") frame(sample);
  }
}

function wireCost(shown) {
  if (!state.base || !state.wire) return {};
  return { up: shown.up + state.wire.server - state.base.server, down: shown.down + state.wire.you - state.base.you };
}

function frame(sample) {
  const box = $("wire");
  const empty = box.querySelector(".empty");
  if (empty) empty.remove();
  const item = document.createElement("div");
  item.className = "frame";
  const where = document.createElement("div");
  where.className = "where";
  const what = document.createElement("span"), length = document.createElement("span");
  what.textContent = [sample.phase, sample.operation].filter(Boolean).join(" · ");
  length.textContent = size(sample.size);
  where.append(what, length);
  const bytes = document.createElement("div");
  bytes.textContent = sample.hex.replace(/(..)/g, "$1 ").trim();
  item.append(where, bytes);
  box.append(item);
  while (box.childElementCount > 120) box.firstElementChild.remove();
  follow(box);
}

async function keepWatching() {
  if (state.model && !state.locked) await watch();
  setTimeout(keepWatching, state.running ? 250 : 2000);
}

// ---- conversations

function begin() {
  state.messages = [];
  state.total = fresh();
  $("talk").replaceChildren();
  publish("");
  meter(state.total);
  busy(false);
}

function publish(text) {
  state.publicText = text;
  $("public").hidden = !text;
  $("public").textContent = text ? `The server reads this: ${text}` : "";
}

function save() {
  const content = { sottovoce: 1, model: state.model && state.model.id, public: state.publicText, messages: state.messages };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say("saved, in the clear: keep the file as private as the conversation");
}

async function load(file) {
  try {
    const content = JSON.parse(await file.text());
    const good = content.sottovoce === 1 && typeof content.public === "string" && Array.isArray(content.messages)
      && content.messages.every((m) => ["user", "assistant"].includes(m.role) && typeof m.content === "string");
    if (!good) throw new Error("this is not a saved conversation");
    begin();
    publish(content.public);
    for (const message of content.messages) {
      state.messages.push({ role: message.role, content: message.content });
      show(message.role, message.content);
    }
    busy(false);
    say(`${content.messages.length} messages loaded; the next one continues them`);
  } catch (error) {
    say(`cannot load ${file.name}: ${error.message}`);
  }
}

function chosen(id, use) {
  $(id).addEventListener("change", (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (file) use(file);
  });
}

// ---- wiring

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  $("token").value = "";
  lock(false);
  describe();
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("message").value.trim();
  if (!text || state.running) return;
  $("message").value = "";
  ask(text);
});
$("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running) state.running.abort();
});
$("stop").addEventListener("click", () => state.running && state.running.abort());
$("new").addEventListener("click", begin);
$("save").addEventListener("click", save);
$("load").addEventListener("click", () => $("load-file").click());
$("publish").addEventListener("click", () => $("public-file").click());
chosen("load-file", load);
chosen("public-file", async (file) => {
  publish(await file.text());
  say(`${file.name} comes first in this conversation, and the server reads it`);
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

describe();
keepWatching();
