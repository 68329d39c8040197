// The model on this page itself: picture → pixels → ONNX Runtime → the answer that `vit predict` gives.
// Beside it lie model.json and model.onnx, which `vit export --to web` wrote, and the folder runtime/.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1;  // more need headers that a plain server does not send

const MAX_PIXELS = 64_000_000;
const TOP = 5;

/** Python's round: halves go to the even neighbour. */
function round(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}

// ── Pillow's resize, bit for bit: coefficients of 22 bits, one axis after the other, rounded to bytes between ──

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 22;

/** For each of `out` places on an axis: its first neighbour among `size`, and the weights of the neighbours. */
function weightsOf(size, from, to, out, [support, filter]) {
  const scale = Math.fround(to - from) / out, stretch = Math.max(scale, 1), reach = support * stretch, by = 1 / stretch;
  return Array.from({ length: out }, (_, i) => {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const last = Math.min(Math.trunc(center + reach + 0.5), size);
    const found = [];
    let sum = 0;
    for (let x = first; x < last; x += 1) {
      const weight = filter((x - center + 0.5) * by);
      found.push(weight);
      sum += weight;
    }
    const weights = found.map((weight) => {
      const share = (sum === 0 ? weight : weight / sum) * (1 << BITS);
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    return { first, weights: Int32Array.from(weights) };
  });
}

const byte = (sum) => Math.min(Math.max(sum >> BITS, 0), 255);

function acrossResized({ data, height, channels, width }, places) {
  const out = new Uint8Array(places.length * height * channels);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < places.length; x += 1) {
      const { first, weights } = places[x];
      for (let c = 0; c < channels; c += 1) {
        let sum = 1 << (BITS - 1), at = (y * width + first) * channels + c;
        for (let k = 0; k < weights.length; k += 1, at += channels) sum += data[at] * weights[k];
        out[(y * places.length + x) * channels + c] = byte(sum);
      }
    }
  }
  return { data: out, width: places.length, height, channels };
}

function downResized({ data, channels, width }, places) {
  const row = width * channels, out = new Uint8Array(places.length * row);
  for (let y = 0; y < places.length; y += 1) {
    const { first, weights } = places[y];
    for (let x = 0; x < row; x += 1) {
      let sum = 1 << (BITS - 1), at = first * row + x;
      for (let k = 0; k < weights.length; k += 1, at += row) sum += data[at] * weights[k];
      out[y * row + x] = byte(sum);
    }
  }
  return { data: out, width, height: places.length, channels };
}

function nearest({ data, width, channels }, outWidth, outHeight, [left, top, right, bottom]) {
  const stepX = (right - left) / outWidth, stepY = (bottom - top) / outHeight;
  const out = new Uint8Array(outWidth * outHeight * channels);
  for (let y = 0, v = top + stepY * 0.5; y < outHeight; y += 1, v += stepY) {
    for (let x = 0, u = left + stepX * 0.5; x < outWidth; x += 1, u += stepX) {
      const from = (Math.trunc(v) * width + Math.trunc(u)) * channels;
      for (let c = 0; c < channels; c += 1) out[(y * outWidth + x) * channels + c] = data[from + c];
    }
  }
  return { data: out, width: outWidth, height: outHeight, channels };
}

function resize(image, width, height, box, interpolation) {
  const [left, top, right, bottom] = box;
  if (image.width === width && image.height === height && !left && !top && right === width && bottom === height) {
    return image;
  }
  if (interpolation === "nearest") return nearest(image, width, height, box);
  const filter = FILTERS[interpolation];
  const across = width !== image.width || left || right !== width;
  const down = height !== image.height || top || bottom !== height;
  const lower = image.height - height;
  const downFirst = lower > 0 && lower > (image.width - width) * 2;
  const passes = [];
  if (across) passes.push((one) => acrossResized(one, weightsOf(one.width, left, right, width, filter)));
  if (down) passes.push((one) => downResized(one, weightsOf(one.height, top, bottom, height, filter)));
  if (downFirst) passes.reverse();
  return passes.reduce((one, pass) => pass(one), image);
}

// ── The preprocessing of vitcli.images.preprocess, with its roundings ──

function offset(image, crop, margin) {
  if (crop > image) return -Math.floor((crop - image) / 2);
  return margin === "floor" ? Math.floor((image - crop) / 2) : round((image - crop) / 2);
}

/** Where things lie once a picture of `width` × `height` is resized: its size, and where the crop begins. */
function plan(width, height, { size, crop_pct: share, crop_mode: mode, crop_margin: margin }) {
  const [cropHeight, cropWidth] = size;
  const scaledHeight = Math.floor(cropHeight / share), scaledWidth = Math.floor(cropWidth / share);
  let newWidth = scaledWidth, newHeight = scaledHeight;
  if (mode === "center" && scaledHeight === scaledWidth) {
    if (width > height) newWidth = Math.trunc((scaledWidth * width) / height);
    if (height > width) newHeight = Math.trunc((scaledHeight * height) / width);
  } else if (mode !== "squash") {
    const ratios = [height / scaledHeight, width / scaledWidth];
    const ratio = mode === "border" ? Math.max(...ratios) : Math.min(...ratios);
    newWidth = round(width / ratio);
    newHeight = round(height / ratio);
  }
  newWidth = Math.max(newWidth, 1);
  newHeight = Math.max(newHeight, 1);
  return {
    width: newWidth, height: newHeight, left: offset(newWidth, cropWidth, margin), top: offset(newHeight, cropHeight, margin),
  };
}

function gray({ data, width, height }) {
  const out = new Uint8Array(width * height);
  for (let i = 0; i < out.length; i += 1) {
    out[i] = (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 0x8000) >> 16;
  }
  return { data: out, width, height, channels: 1 };
}

/** Only the part that the crop keeps is resized, but where that would choose other pixels or another axis first. */
function cropped(image, preprocess) {
  const [height, width] = preprocess.size;
  const place = plan(image.width, image.height, preprocess);
  const whole = (preprocess.interpolation === "nearest" || image.height > image.width) &&
    place.width * place.height <= MAX_PIXELS;
  const left = Math.max(place.left, 0), right = Math.min(place.left + width, place.width);
  const top = Math.max(place.top, 0), bottom = Math.min(place.top + height, place.height);
  let part, skipX = 0, skipY = 0;
  if (whole) {
    part = resize(image, place.width, place.height, [0, 0, image.width, image.height], preprocess.interpolation);
    [skipX, skipY] = [left, top];
  } else {
    const scaleX = image.width / place.width, scaleY = image.height / place.height;
    const box = [
      left * scaleX, top * scaleY, Math.min(right * scaleX, image.width), Math.min(bottom * scaleY, image.height),
    ].map(Math.fround);  // Pillow keeps it so
    part = resize(image, right - left, bottom - top, box, preprocess.interpolation);
  }
  const { channels } = image, out = new Uint8Array(width * height * channels);
  if (preprocess.crop_mode === "border") {
    for (let i = 0; i < out.length; i += 1) {
      out[i] = Math.min(Math.max(round(255 * preprocess.mean[i % channels]), 0), 255);
    }
  }
  const toX = Math.max(-place.left, 0), toY = Math.max(-place.top, 0);
  for (let y = 0; y < bottom - top; y += 1) {
    const from = ((y + skipY) * part.width + skipX) * channels;
    out.set(part.data.subarray(from, from + (right - left) * channels), ((y + toY) * width + toX) * channels);
  }
  return out;
}

/** The file as RGB, upright, transparency on white; as it lies in the file, whatever colour space it names. */
async function decoded(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name || "This"} is not an image that this browser can read.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) throw new Error(`${width} × ${height} pixels are too many: make it smaller first.`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data, data = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) {
    data[j++] = rgba[i];
    data[j++] = rgba[i + 1];
    data[j++] = rgba[i + 2];
  }
  return { data, width, height, channels: 3 };
}

// ── From logits to the answer ──

function shares(logits, { temperature, outputs }) {
  const scaled = Array.from(logits, (logit) => logit / temperature);
  if (outputs === "labels") return scaled.map((value) => 1 / (1 + Math.exp(-value)));
  const most = Math.max(...scaled), powers = scaled.map((value) => Math.exp(value - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** The share of the model's own held-out pictures that look less usual (vitcli.checkpoint.familiarity). */
function familiarityOf(signature, { parts, reference }) {
  let at = 0, score = 0;
  for (const { origin, axes, centers, usual: [mean, deviation, weight] } of parts) {
    const directions = axes.length / origin.length, place = new Float64Array(directions);
    for (let i = 0; i < origin.length; i += 1) {
      const far = signature[at + i] - origin[i];
      for (let p = 0; p < directions; p += 1) place[p] += far * axes[i * directions + p];
    }
    at += origin.length;
    let square = Infinity;
    for (let k = 0; k < centers.length; k += directions) {
      let sum = 0;
      for (let p = 0; p < directions; p += 1) sum += (place[p] - centers[k + p]) ** 2;
      square = Math.min(square, sum);
    }
    score -= weight * Math.exp(Math.min((Math.sqrt(square) - mean) / deviation, 100) / 2);
  }
  const own = Math.fround(score);
  return reference.filter((value) => value < own).length / reference.length;
}

async function statistics(described) {
  const data = new Float32Array(await (await fetch(new URL(described.file, import.meta.url))).arrayBuffer());
  let at = 0;
  const take = (count) => data.subarray(at, (at += count));
  const parts = described.parts.map(({ numbers, directions, centers, usual }) => ({
    origin: take(numbers), axes: take(numbers * directions), centers: take(centers * directions), usual,
  }));
  return { parts, reference: Array.from(take(described.reference)) };
}

let model, session, known;

window.backend = {
  async models() {
    model = await (await fetch(new URL("model.json", import.meta.url))).json();
    session = ort.InferenceSession.create(new URL("model.onnx", import.meta.url).href);
    session.catch(() => {});  // told when it is asked
    known = model.statistics && statistics(model.statistics);
    return [model];
  },

  /** What the model sees of a picture: bytes, (height, width, channels). */
  async pixels(file) {
    const image = await decoded(file);
    return cropped(model.preprocess.mean.length === 1 ? gray(image) : image, model.preprocess);
  },

  async predict(_, file) {
    const ready = await session, began = performance.now();
    const { size: [height, width], mean, std } = model.preprocess;
    const pixels = await this.pixels(file), channels = mean.length, values = new Float32Array(pixels.length);
    for (let i = 0; i < height * width; i += 1) {
      for (let c = 0; c < channels; c += 1) {
        const share = Math.fround(pixels[i * channels + c] / 255);
        values[c * height * width + i] = Math.fround(Math.fround(share - Math.fround(mean[c])) / Math.fround(std[c]));
      }
    }
    const given = await ready.run({ images: new ort.Tensor("float32", values, [1, channels, height, width]) });
    const probabilities = shares(given.logits.data, model);
    if (!probabilities.every(Number.isFinite)) throw new Error("The model's answer is not finite.");
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
    const named = model.thresholds.length
      ? order.filter((i) => probabilities[i] >= model.thresholds[i]) : order.slice(0, TOP);
    const prediction = {
      path: file.name,
      labels: named.map((i) => ({ label: model.labels[i], probability: probabilities[i], index: i })),
    };
    if (known) prediction.familiarity = familiarityOf(given.signature.data, await known);
    return { prediction, milliseconds: performance.now() - began };
  },
};
