"use strict";

const element = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const INPUTS_AT_ONCE = 256, MOST_SHOWN = 100;

async function call(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (element("key").value) headers.Authorization = `Bearer ${element("key").value}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok) {
    if (response.status === 401) element("key-field").hidden = false;
    throw new Error(answer.error.message);
  }
  return answer;
}

function floats(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

async function embed(model, texts, prompt = "") {
  const vectors = [], usage = { total_tokens: 0, truncated: 0 };
  for (let start = 0; start < texts.length; start += INPUTS_AT_ONCE) {
    const body = { ...fieldsOf(model, texts.slice(start, start + INPUTS_AT_ONCE), prompt), encoding_format: "base64" };
    const answer = await call("v1/embeddings", body);
    vectors.push(...answer.data.map((item) => floats(item.embedding)));
    for (const name in usage) usage[name] += answer.usage[name];
  }
  return { vectors, usage };
}

const fieldsOf = (model, input, prompt) => ({ model, input, ...(prompt ? { prompt_name: prompt } : {}) });

/* What a model says of itself; one that was never used says nothing before its first vector. */
async function cardOf(model) {
  const ask = () => call(`v1/models/${encodeURIComponent(model)}`);
  const card = await ask();
  if (card.digest) return card;
  await embed(model, ["start"]);
  return ask();
}

/* Vectors, cosines and the ranking of all passages under one model; the prompt where the model has it. */
async function rankUnder(model, query, passages, chosen) {
  const prompt = chosen in (await cardOf(model)).instructions ? chosen : "";
  const [found, asked] = await Promise.all([embed(model, passages), embed(model, [query], prompt)]);
  const scores = found.vectors.map((vector) => dot(vector, asked.vectors[0]));
  const rank = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a]);
  const tokens = found.usage.total_tokens + asked.usage.total_tokens;
  return { model, prompt, vectors: [...found.vectors, asked.vectors[0]], scores, rank, tokens, cut: found.usage.truncated };
}

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);

/* Strongest direction of centred vectors, by power iteration; `without` is a direction to leave out. */
function axis(rows, without) {
  const remove = (vector) => {
    if (!without) return vector;
    const share = dot(vector, without);
    return vector.map((value, index) => value - share * without[index]);
  };
  let direction = remove(Array.from(rows[0], (_, index) => Math.sin(index + 1)));
  for (let round = 0; round < 60; round++) {
    const next = new Array(direction.length).fill(0);
    for (const row of rows) {
      const weight = dot(row, direction);
      for (let index = 0; index < next.length; index++) next[index] += weight * row[index];
    }
    const rest = remove(next);
    const length = Math.sqrt(dot(rest, rest)) || 1;
    direction = rest.map((value) => value / length);
  }
  return direction;
}

function project(vectors) {
  const mean = Array.from(vectors[0], (_, index) => vectors.reduce((sum, row) => sum + row[index], 0) / vectors.length);
  const rows = vectors.map((row) => Array.from(row, (value, index) => value - mean[index]));
  const first = axis(rows);
  const second = axis(rows, first);
  return rows.map((row) => [dot(row, first), dot(row, second)]);
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function highlight(index, on) {
  for (const node of document.querySelectorAll(`[data-index="${index}"]`)) node.classList.toggle("on", on);
}

function watch(node, index) {
  node.dataset.index = index;
  node.addEventListener("mouseenter", () => highlight(index, true));
  node.addEventListener("mouseleave", () => highlight(index, false));
}

/* `points` belong to the passages in `rank`, in its order; the query's comes last. */
function drawMap(points, passages, rank) {
  const map = element("map");
  map.replaceChildren();
  const scale = (values, size) => {
    const low = Math.min(...values), range = Math.max(...values) - low || 1;
    return values.map((value) => 36 + ((value - low) / range) * (size - 72));
  };
  const x = scale(points.map((point) => point[0]), 640);
  const y = scale(points.map((point) => point[1]), 340);
  const query = points.length - 1;
  map.append(shape("line", { x1: x[query], y1: y[query], x2: x[0], y2: y[0] }));
  rank.forEach((index, place) => {
    const circle = shape("circle", { cx: x[place], cy: y[place], r: 7 });
    circle.append(shape("title", {}, passages[index]));
    watch(circle, index);
    map.append(circle, shape("text", { x: x[place] + 10, y: y[place] + 4 }, place + 1));
  });
  map.append(shape("circle", { cx: x[query], cy: y[query], r: 8, class: "query" }));
  map.append(shape("text", { x: x[query] + 12, y: y[query] + 4, class: "query" }, "query"));
}

function listResults(passages, { scores, rank }, other) {
  const items = rank.slice(0, MOST_SHOWN).map((index, place) => {
    const item = document.createElement("li");
    const text = document.createElement("div");
    text.textContent = passages[index];
    const bar = document.createElement("div");
    bar.className = "bar";
    const fill = document.createElement("i");
    fill.style.width = `${Math.max(0, scores[index]) * 100}%`;
    bar.append(fill);
    text.append(bar);
    const column = (name, value) => {
      const node = document.createElement("span");
      node.className = name;
      node.textContent = value;
      return node;
    };
    item.append(column("rank", place + 1), text, column("score", scores[index].toFixed(3)));
    if (other) item.append(column("other", `${other.scores[index].toFixed(3)} (${other.rank.indexOf(index) + 1})`));
    watch(item, index);
    return item;
  });
  element("results").classList.toggle("two", Boolean(other));
  element("results").replaceChildren(...items);
}

function say(text, bad = false) {
  element("message").textContent = text;
  element("message").classList.toggle("bad", bad);
}

/* The requests of the page, as commands for a shell and as a script; the key stays out of both. */
function showCode(query, passages, runs) {
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const withKey = !element("key-field").hidden;
  const quoted = (body) => `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  const ask = (body) =>
    `curl -s ${base}/v1/embeddings -H 'Content-Type: application/json'${withKey ? ' -H "Authorization: Bearer $KEY"' : ""} -d ${quoted(body)}`;
  element("curl").textContent = runs
    .flatMap(({ model, prompt }) => [fieldsOf(model, query, prompt), fieldsOf(model, passages)])
    .map(ask)
    .join("\n");
  const prompts = runs.map(({ model, prompt }) => `    ${JSON.stringify(model)}: ${JSON.stringify(prompt ? { prompt_name: prompt } : {})},`);
  element("python").textContent = `${withKey ? "import os\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${base}/v1", api_key=${withKey ? 'os.environ["KEY"]' : '"unused"'})
query = ${JSON.stringify(query)}
passages = [
${passages.map((passage) => `    ${JSON.stringify(passage)},`).join("\n")}
]
models = {
${prompts.join("\n")}
}
for model, fields in models.items():
    asked = client.embeddings.create(model=model, input=query, extra_body=fields).data[0].embedding
    found = client.embeddings.create(model=model, input=passages).data
    scores = [sum(a * b for a, b in zip(asked, item.embedding)) for item in found]
    for score, passage in sorted(zip(scores, passages), reverse=True):
        print(model, round(score, 3), passage)
`;
}

async function copy(button) {
  const code = element(button.dataset.copies);
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Press Ctrl-C"; // the browser gives pages without TLS no clipboard
  }
}

async function search(event) {
  event?.preventDefault();
  const passages = element("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (passages.length === 0) return say("Paste at least one passage.", true);
  const query = element("query").value;
  const models = [element("model").value, element("other")?.value].filter(Boolean);
  element("search").disabled = true;
  say("Embedding…");
  try {
    const started = performance.now();
    const runs = await Promise.all(models.map((model) => rankUnder(model, query, passages, element("prompt").value)));
    const milliseconds = Math.round(performance.now() - started);
    const [first, other] = runs;
    const shown = first.rank.slice(0, MOST_SHOWN);
    listResults(passages, first, other);
    drawMap(project([...shown, passages.length].map((index) => first.vectors[index])), passages, shown);
    showCode(query, passages, runs);
    const tokens = runs.reduce((sum, run) => sum + run.tokens, 0);
    const cut = first.cut ? `, ${first.cut} passages cut to the maximum length` : "";
    const best = shown.length < passages.length ? `, the best ${shown.length} shown` : "";
    say(`${passages.length} passages, ${tokens} tokens, ${milliseconds} ms${cut}${best}`);
  } catch (error) {
    say(error.message, true);
  } finally {
    element("search").disabled = false;
  }
}

/* A line of a dropped file: a text, or a JSON object whose field `text`, or else its first text, is meant. */
function textOf(line) {
  if (!line.startsWith("{")) return line;
  try {
    const row = JSON.parse(line);
    return String(row.text ?? Object.values(row).find((value) => typeof value === "string") ?? "").replaceAll("\n", " ");
  } catch {
    return line;
  }
}

async function drop(event) {
  event.preventDefault();
  element("passages").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (!file) return;
  element("passages").value = (await file.text()).split("\n").map((line) => textOf(line.trim())).filter(Boolean).join("\n");
  await search();
}

async function listInstructions() {
  try {
    const { instructions } = await cardOf(element("model").value);
    const names = Object.keys(instructions).sort();
    const options = names.map((name) => {
      const option = new Option(name, name);
      option.title = instructions[name];
      return option;
    });
    element("prompt").replaceChildren(new Option("none", ""), ...options);
    if (names.includes("query")) element("prompt").value = "query";
    await search();
  } catch (error) {
    say(error.message, true);
  }
}

element("form").addEventListener("submit", search);
for (const id of ["model", "key"]) element(id).addEventListener("change", listInstructions);
element("other")?.addEventListener("change", search);
element("passages").addEventListener("drop", drop);
element("passages").addEventListener("dragover", (event) => {
  event.preventDefault();
  element("passages").classList.add("over");
});
element("passages").addEventListener("dragleave", () => element("passages").classList.remove("over"));
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", () => copy(button));
listInstructions();
