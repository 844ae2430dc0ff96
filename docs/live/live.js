// An image through bicubic interpolation and a network, in tiles (see reparam/sr/_upscale/tiles.py), and the two compared.
import * as ort from "./ort.wasm.min.mjs";

const TILE = 128;
const LIMIT = 50e6;
const KINDS = "PNG, JPEG, WebP, AVIF, GIF or BMP";

const here = (name) => new URL(name, import.meta.url).href;
const part = (name) => document.getElementById(`live-${name}`);
const brush = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
const parts = ["network", "zoom", "download", "problem", "progress", "stage", "still", "view", "layers", "result", "divide"];
const [network, zoom, download, problem, progress, stage, still, view, layers, result, divide] = parts.map(part);
const [bicubic, ours] = ["bicubic", "ours"].map(part);

ort.env.wasm.numThreads = 1; // more of them need headers that a static site does not send
ort.env.wasm.proxy = true; // in a worker
ort.env.wasm.wasmPaths = here(".");

const sessions = new Map();
let networks = []; // name, scale and radius of each
let asked = 0; // files so far
let shown = 0; // which of them is the source: the last one that is an image, whichever was decoded first
let source = null; // its name, and its pixels on a canvas
let job = 0; // one that is no longer the last gives up

async function open(file) {
  const mine = ++asked;
  try {
    const canvas = await decode(file);
    if (mine < shown) return;
    shown = mine;
    source = { name: file.name.replace(/\.[^.]*$/, ""), canvas };
  } catch (error) {
    if (mine > shown) complain(error.message);
    return;
  }
  if (mine === asked) problem.hidden = true; // else it may tell of a later file
  enlarge();
}

async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser reads, but ${await content(file)}. Choose a ${KINDS}.`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = brush(canvas);
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}

async function content(file) {
  const bytes = new Uint8Array(await file.slice(0, 32).arrayBuffer());
  if (!bytes.length) return "an empty file";
  const start = String.fromCharCode(...bytes);
  if (start.startsWith("%PDF")) return "a PDF";
  if (/^[\t\n\r -~]+$/.test(start)) return `text that begins “${start.trim().slice(0, 20)}”`;
  return `${file.size} bytes, of type ${file.type || "unknown"}, which it cannot decode`;
}

function complain(message) {
  problem.textContent = message;
  problem.hidden = false;
}

async function enlarge() {
  if (!source || !networks.length) return;
  const mine = ++job;
  const chosen = networks[network.value];
  [progress.hidden, download.disabled] = [false, true];
  progress.removeAttribute("value");
  result.textContent = "";
  try {
    prepare(chosen.scale);
    const runs = await Promise.all([session(`bicubic_x${chosen.scale}.onnx`), session(`${chosen.name}.onnx`)]);
    const seconds = await through(runs, chosen, () => mine === job);
    if (mine === job) finish(chosen.scale, seconds);
  } catch (error) {
    if (mine !== job) return;
    [stage.hidden, progress.hidden] = [true, true];
    complain(error.message);
  }
}

function session(file) {
  if (!sessions.has(file)) sessions.set(file, load(file));
  return sessions.get(file);
}

async function load(file) {
  try {
    return await ort.InferenceSession.create(here(file));
  } catch (error) {
    sessions.delete(file); // the next image tries again
    throw new Error(`${file} could not be loaded (${error.message}). Is the web server still there?`);
  }
}

function prepare(scale) {
  const [width, height] = [scale * source.canvas.width, scale * source.canvas.height];
  const size = `${width}x${height} pixels`;
  if (width * height > LIMIT) {
    const megapixels = Math.ceil((width * height) / 1e6);
    throw new Error(
      `The result would have ${size}, ${megapixels} megapixels; at most ${LIMIT / 1e6} are possible here. ` +
        "Choose a smaller image or scale, or use reparam upscale.",
    );
  }
  for (const canvas of [bicubic, ours]) {
    [canvas.width, canvas.height] = [width, height];
    if (!holds(canvas)) throw new Error(`This browser has no room for ${size}. Choose a smaller image or scale.`);
  }
  [stage.hidden, still.hidden] = [false, true];
  stage.classList.add("live-waiting"); // to paint a large canvas after each tile takes longer than to compute it
  show();
}

function holds(canvas) {
  const [context, x, y] = [brush(canvas), canvas.width - 1, canvas.height - 1];
  context.fillRect(x, y, 1, 1);
  const kept = context.getImageData(x, y, 1, 1).data[3] === 255;
  context.clearRect(x, y, 1, 1);
  return kept;
}

async function through([cubic, net], { scale, radius }, wanted) {
  const { width, height } = source.canvas;
  const context = brush(source.canvas);
  const across = [...spans(width, radius)];
  const tiles = [...spans(height, radius)].flatMap((rows) => across.map((columns) => [rows, columns]));
  const gray = tiles.every(([rows, columns]) => isGray(context, rows, columns));
  const seconds = [0, 0];
  for (const [index, [rows, columns]] of tiles.entries()) {
    const size = [columns.last - columns.first, rows.last - rows.first];
    const x = planar(context.getImageData(columns.first, rows.first, ...size).data);
    const input = () => new ort.Tensor("float32", x.slice(), [1, 3, size[1], size[0]]); // the worker keeps what it gets
    const start = performance.now();
    const smooth = await cubic.run({ input: input() });
    const middle = performance.now();
    const sharp = await net.run({ input: input() });
    seconds[0] += (middle - start) / 1000;
    seconds[1] += (performance.now() - middle) / 1000;
    if (!wanted()) return seconds;
    place(bicubic, smooth.output, rows, columns, scale);
    if (gray) equal(sharp.output.data);
    place(ours, sharp.output, rows, columns, scale);
    progress.value = (index + 1) / tiles.length;
  }
  return seconds;
}

function isGray(context, rows, columns) {
  const size = [columns.stop - columns.start, rows.stop - rows.start];
  const { data } = context.getImageData(columns.start, rows.start, ...size);
  for (let index = 0; index < data.length; index += 4)
    if (data[index] !== data[index + 1] || data[index] !== data[index + 2]) return false;
  return true;
}

function equal(data) { // the mean of three colors, which a network for color does not keep equal by itself
  const count = data.length / 3;
  for (let index = 0; index < count; index++) {
    const mean = (data[index] + data[count + index] + data[2 * count + index]) / 3;
    for (let color = 0; color < 3; color++) data[color * count + index] = mean;
  }
}

function* spans(length, radius) {
  const overlap = Math.max(radius, 2); // 2 is what bicubic interpolation reads
  const count = Math.ceil(length / TILE);
  for (let index = 0; index < count; index++) {
    const [start, stop] = [index, index + 1].map((edge) => Math.floor((edge * length) / count));
    yield { start, stop, first: Math.max(0, start - overlap), last: Math.min(length, stop + overlap) };
  }
}

function planar(pixels) {
  const count = pixels.length / 4;
  const values = new Float32Array(3 * count);
  for (let color = 0; color < 3; color++)
    for (let index = 0; index < count; index++) values[color * count + index] = pixels[4 * index + color] / 255;
  return values;
}

function place(canvas, { data, dims }, rows, columns, scale) {
  const [height, width] = dims.slice(2);
  const count = height * width;
  const pixels = new Uint8ClampedArray(4 * count).fill(255); // which rounds what is put into it
  for (let color = 0; color < 3; color++)
    for (let index = 0; index < count; index++) pixels[4 * index + color] = 255 * data[color * count + index];
  const [x, y, left, top, wide, high] = [
    columns.first, rows.first, columns.start - columns.first, rows.start - rows.first,
    columns.stop - columns.start, rows.stop - rows.start,
  ].map((value) => scale * value);
  brush(canvas).putImageData(new ImageData(pixels, width, height), x, y, left, top, wide, high);
}

function finish(scale, [cubic, net]) {
  const { width, height } = source.canvas;
  [progress.hidden, download.disabled] = [true, false];
  stage.classList.remove("live-waiting");
  download.dataset.name = `${source.name}_x${scale}.png`;
  result.textContent =
    `${width}x${height} pixels became ${ours.width}x${ours.height}: ` +
    `${net.toFixed(2)} s for the network, ${cubic.toFixed(2)} s for bicubic interpolation.`;
}

function show() {
  const factor = Number(zoom.value);
  stage.classList.toggle("live-whole", !factor);
  stage.classList.toggle("live-coarse", factor > 1);
  layers.style.width = factor ? `${(factor * ours.width) / devicePixelRatio}px` : "100%";
  view.scrollTo((view.scrollWidth - view.clientWidth) / 2, (view.scrollHeight - view.clientHeight) / 2);
  cut();
}

function cut() {
  ours.style.clipPath = `inset(0 0 0 ${view.scrollLeft + (view.clientWidth * divide.value) / 100}px)`;
  divide.style.setProperty("--wide", `${view.clientWidth}px`);
}

function save() {
  ours.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob) });
    link.download = download.dataset.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
}

function listen() {
  part("file").addEventListener("change", ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = ""; // so that the same file may be chosen again
  });
  part("sample").addEventListener("click", async () => {
    const response = await fetch(here("chelsea.png"));
    open(new File([await response.blob()], "chelsea.png"));
  });
  addEventListener("paste", ({ clipboardData }) => clipboardData.files.length && open(clipboardData.files[0]));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) open(file);
    else complain(`What was dropped is no file. Drop a ${KINDS} from a folder.`);
  });
  network.addEventListener("change", () => {
    problem.hidden = true;
    enlarge();
  });
  zoom.addEventListener("change", show);
  download.addEventListener("click", save);
  divide.addEventListener("input", cut);
  view.addEventListener("scroll", cut);
  new ResizeObserver(cut).observe(view);
}

listen();
networks = await (await fetch(here("networks.json"))).json();
network.append(...networks.map(({ name }, index) => new Option(name, index)));
part("off").hidden = true;
enlarge(); // what was chosen meanwhile
