// Draws what the admin port tells as JSON, anew every two seconds. Whatever comes from there is put
// in as text, never as markup.
"use strict";

const PERIOD_MS = 2000;
// So many tasks of a kind are drawn; beyond that a picture says no more.
const TASKS_MAX = 4000;
const SVG = "http://www.w3.org/2000/svg";

const at = (selector) => document.querySelector(selector);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect", "text", "line", "title", "g"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count.toFixed(unit > 0 && count < 10 ? 1 : 0)} ${units[unit]}`;
}

function time(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  return minutes < 120 ? `${minutes} min ${Math.round(ms / 1000) % 60} s` : `${(ms / 3_600_000).toFixed(1)} h`;
}

async function ask(path) {
  const response = await fetch(path);
  const told = await response.json();
  if (response.ok) return told;
  const leader = told.leader ? `; ${told.leader} leads, ask its admin port` : "";
  throw new Error(told.error + leader);
}

async function pages(path, name, most) {
  const found = [];
  let token = "";
  do {
    const page = await ask(`${path}limit=1000&page_token=${token}`);
    found.push(...page[name]);
    token = page.next_page_token;
  } while (token && found.length < most);
  return found;
}

// Bytes a second: since the last look while a job runs, over all of it when it has ended.
const looks = new Map();
function rate(job) {
  const read = job.maps.bytes_committed;
  if (job.ended_unix_ms) {
    looks.delete(job.id);
    const ms = job.ended_unix_ms - job.submitted_unix_ms;
    return read && ms ? `${bytes((read * 1000) / ms)}/s` : "";
  }
  const now = performance.now();
  const last = looks.get(job.id) ?? { read, now };
  if (now - last.now > PERIOD_MS / 2 || !looks.has(job.id)) looks.set(job.id, { read, now });
  return read > last.read ? `${bytes(((read - last.read) * 1000) / (now - last.now))}/s` : "";
}

const took = (job) => time((job.ended_unix_ms ?? Date.now()) - job.submitted_unix_ms);

function bar(tasks) {
  const filled = make("i");
  filled.style.width = `${tasks.total ? (100 * tasks.committed) / tasks.total : 0}%`;
  let text = `${tasks.committed}/${tasks.total}`;
  if (tasks.running) text += `, ${tasks.running} running`;
  if (tasks.retries) text += `, ${tasks.retries} retried`;
  return make("td", {}, make("span", { class: "bar" }, filled), text);
}

function drawJobs(jobs) {
  const rows = jobs.map((job) => {
    const link = make("a", { href: `#${job.id}` }, job.name || job.id);
    const state = make("span", { class: `state ${job.state}` }, job.state);
    const chosen = location.hash === `#${job.id}` ? { class: "chosen" } : {};
    const cells = [link, job.app, state].map((cell) => make("td", {}, cell));
    const rest = [rate(job), took(job)].map((text) => make("td", {}, text));
    return make("tr", chosen, ...cells, bar(job.maps), bar(job.reduces), ...rest);
  });
  at("#jobs tbody").replaceChildren(...rows);
  at("#jobs .empty").hidden = rows.length > 0;
}

function drawWorkers(workers) {
  const rows = workers.map((worker) => {
    const heard = worker.heard_ms_ago === null ? "" : `${time(worker.heard_ms_ago)} ago`;
    const excluded = worker.excluded_from ? `, kept out of ${worker.excluded_from} jobs` : "";
    const used = `${Math.min(worker.tasks, worker.slots)} of ${worker.slots}`;
    const cells = [worker.name, used, heard, worker.state + excluded, worker.apps.join(", ")];
    return make("tr", {}, ...cells.map((text) => make("td", {}, text)));
  });
  at("#workers tbody").replaceChildren(...rows);
  at("#workers .empty").hidden = rows.length > 0;
}

const KINDS = { accepted: "accepted", running: "running", "running (backup)": "running", failed: "failed", expired: "expired" };

// Lanes of a worker: an attempt takes the first that is free when it begins.
function lanes(tasks) {
  const spans = tasks.flatMap((task) => task.attempts
    .filter((attempt) => attempt.age_ms > 0 && attempt.state !== "queued")
    .map((attempt) => ({ task, attempt, from: -attempt.age_ms, to: attempt.duration_ms - attempt.age_ms })));
  spans.sort((one, other) => one.from - other.from);
  const workers = new Map();
  for (const span of spans) {
    const own = workers.get(span.attempt.worker) ?? [];
    workers.set(span.attempt.worker, own);
    const free = own.find((lane) => lane.at(-1).to <= span.from);
    if (free) free.push(span); else own.push([span]);
  }
  return [...workers].sort(([one], [other]) => (one < other ? -1 : 1));
}

function timeline(tasks) {
  const workers = lanes(tasks);
  const spans = workers.flatMap(([, own]) => own.flat());
  if (spans.length === 0) return make("p", { class: "faint" }, "Nothing that this coordinator saw.");
  const begin = Math.min(...spans.map((span) => span.from));
  const length = Math.max(1, Math.max(...spans.map((span) => span.to)) - begin);
  const [left, width, step] = [150, 1000, 16];
  const place = (when) => left + ((when - begin) / length) * (width - left - 10);
  const drawing = [];
  let y = 4;
  for (const [name, own] of workers) {
    drawing.push(make("text", { x: 0, y: y + 11 }, name.length > 24 ? `…${name.slice(-23)}` : name));
    for (const lane of own) {
      drawing.push(make("line", { class: "lane", x1: left, x2: width, y1: y + step, y2: y + step }));
      for (const { task, attempt, from, to } of lane) {
        const kind = KINDS[attempt.state] ?? "other";
        const x = place(from);
        const box = { x, y: y + 2, width: Math.max(1.5, place(to) - x - 0.5), height: step - 4, rx: 2 };
        const words = `${task.kind} ${task.number}, attempt ${attempt.attempt}, ${attempt.state}\n`
          + `${time(attempt.duration_ms)} on ${attempt.worker}, ${bytes(attempt.bytes)} read`
          + (attempt.failure ? `\n${attempt.failure}` : "");
        const shape = make("rect", { ...box, class: attempt.backup ? `${kind} backup` : kind });
        shape.append(make("title", {}, words));
        drawing.push(shape);
      }
      y += step;
    }
    y += 4;
  }
  for (let tick = 0; tick <= 4; tick += 1) {
    const when = (length * tick) / 4;
    const anchor = tick === 4 ? "end" : tick === 0 ? "start" : "middle";
    drawing.push(make("text", { x: place(begin + when), y: y + 12, "text-anchor": anchor }, time(when)));
  }
  return make("svg", { viewBox: `0 0 ${width} ${y + 18}`, role: "img" }, ...drawing);
}

// A bar for each task, the tallest beside the median in words.
function skew(title, unit, tasks, measure) {
  const measured = tasks.map((task) => ({ task, size: measure(task) })).filter(({ size }) => size > 0);
  if (measured.length < 2) return null;
  const sizes = measured.map(({ size }) => size).sort((one, other) => one - other);
  const [median, most] = [sizes[Math.floor(sizes.length / 2)], sizes.at(-1)];
  const top = measured.find(({ size }) => size === most).task;
  const words = `${title}: ${unit(most)} at the most (${top.kind} ${top.number}), ${unit(median)} in the median, ${(most / median).toFixed(1)} times`;
  const width = 1000 / measured.length;
  const bars = measured.map(({ task, size }, place) => {
    const height = Math.max(1, (size / most) * 60);
    const box = { x: place * width, y: 62 - height, width: Math.max(0.5, width - (width > 4 ? 1 : 0)), height };
    const kind = size > 2 * median ? "expired" : "accepted";
    const shape = make("rect", { ...box, class: kind });
    shape.append(make("title", {}, `${task.kind} ${task.number}: ${unit(size)}`));
    return shape;
  });
  const drawing = make("svg", { viewBox: "0 0 1000 64", preserveAspectRatio: "none", role: "img" }, ...bars);
  return make("div", {}, make("h3", {}, words), drawing);
}

const accepted = (task) => task.attempts.find((attempt) => attempt.state === "accepted");

function legend() {
  const kinds = ["accepted", "running", "failed", "expired", "other"];
  const items = kinds.map((kind) => make("span", {}, make("i", { class: kind }), kind));
  return make("p", { class: "legend faint" }, ...items, make("span", {}, "dashed: a backup"));
}

function drawJob(job, maps, reduces) {
  const facts = { id: job.id, app: job.app, input: job.inputs.join(" "), output: job.output, "waits for": job.waiting_for };
  const told = Object.entries(facts).filter(([, text]) => text)
    .flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]);
  const counters = Object.entries(job.counters).sort().map(([name, count]) =>
    make("div", {}, make("span", { class: "faint" }, name), make("span", {}, count.toLocaleString("en"))));
  const duration = (task) => accepted(task)?.duration_ms ?? 0;
  at("#job").replaceChildren(
    make("h2", {}, job.name || job.id, " ", make("span", { class: `state ${job.state}` }, job.state)),
    make("dl", {}, ...told),
    ...(job.failure ? [make("pre", {}, job.failure)] : []),
    make("h3", {}, "Timeline by worker, as its heartbeats told"), timeline([...maps, ...reduces]), legend(),
    ...[skew("Input of maps", bytes, maps, (task) => task.input_bytes), skew("Time of maps", time, maps, duration),
      skew("Time of reduces", time, reduces, duration)].filter((picture) => picture),
    ...(counters.length ? [make("h3", {}, "Counters of accepted attempts"), make("div", { class: "counters" }, ...counters)] : []),
  );
  at("#job").hidden = false;
}

async function draw() {
  const [jobs, workers] = await Promise.all([ask("api/jobs?limit=50"), ask("api/workers")]);
  drawJobs(jobs.jobs);
  drawWorkers(workers.workers);
  const id = location.hash.slice(1);
  if (!/^[0-9a-f-]+$/.test(id)) {
    at("#job").hidden = true;
    return;
  }
  const tasks = `api/jobs/${id}/tasks?kind=`;
  const [job, maps, reduces] = await Promise.all([
    ask(`api/jobs/${id}`), pages(`${tasks}map&`, "tasks", TASKS_MAX), pages(`${tasks}reduce&`, "tasks", TASKS_MAX)]);
  drawJob(job, maps, reduces);
}

let drawing = false;
async function look() {
  if (document.hidden || drawing) return;
  drawing = true;
  try {
    await draw();
    at("#note").textContent = "";
  } catch (error) {
    // `fetch` itself throws a TypeError when nobody answers.
    at("#note").textContent = error instanceof TypeError ? "The coordinator cannot be reached." : error.message;
  } finally {
    drawing = false;
  }
}

setInterval(look, PERIOD_MS);
document.addEventListener("visibilitychange", look);
window.addEventListener("hashchange", look);
look();
