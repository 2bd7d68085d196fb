// The reader's page: sends an image to the service, shows what it says. Text from elsewhere is set as text only.
"use strict";

const $ = (id) => document.getElementById(id);
const EXPLAINED = {
  image: "The image as the network saw it: the whole of it, stretched to a square.",
  regions: "Regions that the guidance network cut out for a closer look; the heavier the line, the more they weigh. " +
    "They are sought in the maps of all classes together.",
  saliency: "Where the guidance network responds to this class, from its lowest value in this image (dark) to its " +
    "highest (bright). It says where, not why, and not that it is right to.",
};
const WAIT_MS = 120000;
let token = "";
let chosen = null;
let last = null;
let asked = 0;

function say(text, wrong = false) {
  $("state").textContent = text;
  $("state").className = wrong ? "wrong" : "";
}

async function ask(path, options = {}) {
  const headers = { ...(options.headers || {}), ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(WAIT_MS) });
  } catch {
    throw new Error("The service does not answer. Is it running?");
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    $("key").hidden = false;
    $("token").focus();
  }
  if (!answer.ok) throw new Error(told.message || `The service answered ${answer.status}.`);
  return told;
}

function percent(share) {
  const shown = share < 0.001 ? "below 0.1" : share > 0.999 ? "above 99.9" : (100 * share).toFixed(1);
  return `${shown} %`; // no calibration knows of 0 or 1
}

function cell(row, text) {
  const made = row.insertCell();
  made.textContent = text;
  return made;
}

function called(about, name) {
  const plain = about.class_names?.[name];
  return plain ? `${plain} (${name})` : name;
}

function showClasses(told) {
  const decided = [].concat(told.decided);
  const body = $("classes");
  body.replaceChildren();
  const order = [...told.classes].sort((a, b) => told.probabilities[b] - told.probabilities[a]);
  for (const name of order) {
    const row = body.insertRow();
    row.className = decided.includes(name) ? "decided" : "";
    const first = cell(row, called(told, name));
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    const filled = document.createElement("i");
    filled.style.width = `${100 * told.probabilities[name]}%`;
    const mark = document.createElement("b");
    mark.style.left = `calc(${100 * told.prior[name]}% - 1px)`;
    bar.append(filled, mark);
    first.append(bar);
    cell(row, percent(told.probabilities[name]));
    cell(row, percent(told.prior[name]));
  }
  const beside = [];
  if (told.referred) beside.push("Referred: this image is among those that a person shall decide.");
  if (told.unfamiliar) beside.push("This image is unlike those that the model was trained on: do not rely on it.");
  if (Array.isArray(told.set)) beside.push(`Prediction set: ${told.set.length ? told.set.map((name) => called(told, name)).join(", ") : "no class"}`);
  else if (told.set) beside.push(`Of each label: ${Object.entries(told.set).map((pair) => pair.join(" ")).join(", ")}`);
  for (const [name, value] of Object.entries(told.uncertainty || {})) beside.push(`${name}: ${value.toFixed(3)}`);
  beside.push(...(told.sure || []));
  $("beside").replaceChildren(...beside.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("decided").textContent = decided.length ? `Decided: ${decided.map((name) => called(told, name)).join(", ")}` : "Decided: none of its labels";
}

function layer() {
  return document.querySelector("input[name=layer]:checked").value;
}

function draw() {
  if (!last) return;
  const seen = last.look;
  const side = seen.side;
  const canvas = $("picture");
  const scale = Math.max(1, Math.floor(640 / side));
  canvas.width = canvas.height = side * scale;
  const context = canvas.getContext("2d");
  const bytes = Uint8Array.from(atob(seen.pixels), (c) => c.charCodeAt(0));
  const pixels = new ImageData(side, side);
  for (let i = 0; i < side * side; i += 1) {
    pixels.data.set([bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2], 255], 4 * i);
  }
  context.imageSmoothingEnabled = false;
  context.drawImage(painted(pixels), 0, 0, canvas.width, canvas.height);
  if (layer() === "saliency" && seen.saliency) {
    const grid = seen.saliency.length;
    const heat = new ImageData(grid, grid);
    seen.saliency.flat().forEach((value, i) => heat.data.set([255, 220 * value, 0, 170 * value], 4 * i));
    context.imageSmoothingEnabled = true;
    context.drawImage(painted(heat), 0, 0, canvas.width, canvas.height);
  }
  if (layer() === "regions" && seen.regions) {
    for (const region of seen.regions) {
      const [left, top, size] = [region.left, region.top, region.side].map((share) => share * canvas.width);
      const width = canvas.width * (0.004 + 0.012 * region.weight);
      // A dark edge, so that a line is seen on any ground.
      for (const [colour, more] of [["#10151d", 0.006 * canvas.width], ["#56B4E9", 0]]) {
        [context.strokeStyle, context.lineWidth] = [colour, width + more];
        context.strokeRect(left, top, size, size);
      }
    }
  }
  $("explained").textContent = EXPLAINED[layer()];
  canvas.setAttribute("aria-label", EXPLAINED[layer()]);
}

function painted(data) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [data.width, data.height];
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

function show(told) {
  last = told;
  showClasses(told);
  $("notice").textContent = told.notice;
  const guided = Boolean(told.look.saliency);
  for (const part of document.querySelectorAll(".guided")) part.hidden = !guided;
  $("which").replaceChildren(...told.classes.map((name) => new Option(called(told, name), name, false, name === told.look.class)));
  $("result").hidden = false;
  draw();
}

async function read(file, name = "") {
  const number = (asked += 1);
  chosen = file;
  say("Reading the image …");
  try {
    const query = name ? `&class=${encodeURIComponent(name)}` : "";
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    const told = await ask(`/v1/predict?look=1${query}`, { method: "POST", body: file, headers: { "Content-Type": type } });
    if (number !== asked) return; // another image was chosen meanwhile
    show(told);
    say("Done.");
    if (!name) $("decided").focus();
  } catch (error) {
    if (number !== asked) return;
    last = null;
    $("result").hidden = true; // nothing of an earlier image stays beside a complaint about this one
    say(error.message, true);
  }
}

function describe(card) {
  const facts = {
    run: card.run,
    "signed by": card.signed_by || "nobody",
    classes: card.classes.map((name) => called(card, name)).join(", "),
    ...(card.made_at
      ? { "made by": `the site ${card.made_at.site} for itself (${card.made_at.kind}); it must not leave it` }
      : { strategy: `${card.strategy}, ${card.sites.length} sites, round ${card.chosen_round} of ${card.rounds}` }),
    "validation, mean": Object.entries(card.validation).map(([name, value]) => `${name} ${value.toFixed(3)}`).join(", "),
    "calibrated on": `${card.calibrated_on} images`,
    "digest of the weights": card.digest,
  };
  $("card").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const [term, said] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, said.textContent] = [name, value || "not said"];
    return [term, said];
  }));
  $("not-shown").replaceChildren(...card.not_shown.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  $("unsigned").hidden = Boolean(card.signed_by);
}

async function begin() {
  try {
    describe(await ask("/v1/model"));
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

$("file").addEventListener("change", (event) => event.target.files.length && read(event.target.files[0]));
$("drop").addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
$("drop").addEventListener("dragleave", () => $("drop").classList.remove("over"));
// An image dropped beside the field would otherwise be opened by the browser in place of this page.
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) read(event.dataTransfer.files[0]);
});
for (const radio of document.querySelectorAll("input[name=layer]")) radio.addEventListener("change", draw);
$("which").addEventListener("change", (event) => {
  document.querySelector("input[value=saliency]").checked = true;
  if (chosen) read(chosen, event.target.value);
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("key").hidden = true;
  begin();
});
begin();
