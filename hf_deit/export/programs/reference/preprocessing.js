/* Prepares images for `model.pte` as the classifier was trained, and names its answers. No dependencies.

   As a script it defines `DeiTPreprocessing`; `require("./preprocessing.js")` gives the same object.
     const pixels = pixelValues(imageData);          // {data: Uint8 RGBA, width, height}, upright; or RGB
     best(probabilities(logits));                    // [["cat", 0.93], ["dog", 0.05], …]
   The filters are Pillow's, the arithmetic PyTorch's: a port that follows it gives the values of golden.json. */
"use strict";
(function () {
  const SETTINGS = {
    "labels": ["cat", "dog"],
    "preprocessing": {
      "resize": "shortest",
      "size": [256, 256],
      "filter": "bicubic",
      "crop": [224, 224],
      "scale": 0.00392156862745098,
      "offset": 0.0,
      "mean": [0.485, 0.456, 0.406],
      "std": [0.229, 0.224, 0.225],
      "channel_order": "RGB",
      "input_size": [224, 224],
      "crop_rounding": "zero"
    },
    "model": {}
  }; // end of SETTINGS

  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  // By name: the filter's reach in pixels of the coarser image, and its weight at a distance.
  const FILTERS = {
    box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
    bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
    hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI)) : 0)],
    bicubic: [2, (x) => {
      const a = -0.5;
      x = Math.abs(x);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    }],
    lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
  };

  /* Of `length` pixels resized to `target`, for the places from `start` on, `count` of them: the first pixel that each
     is made of, and the weights of that and the next ones, whole numbers of which `one` make one. They have as many
     bits as in the classifier's own processor: in PyTorch's kernel 16, in Pillow's 22 behind the point. */
  function weightsOf(length, target, start, count, filter, byPyTorch) {
    const scale = length / target;
    if (filter === "nearest") {
      const nearest = (place) => Math.floor(((2 * place + 1) * length) / (2 * target));
      return { one: 1, taps: Array.from({ length: count }, (_, i) => [nearest(start + i), [1]]) };
    }
    const [reach, weight] = FILTERS[filter];
    const coarse = Math.max(scale, 1);
    const taps = [];
    let largest = 0;
    for (let i = 0; i < target; i++) {
      const centre = (i + 0.5) * scale;
      const first = Math.max(0, Math.trunc(centre - reach * coarse + 0.5));
      const end = Math.min(length, Math.trunc(centre + reach * coarse + 0.5));
      const weights = [];
      for (let x = first; x < end; x++) weights.push(weight((x + 0.5 - centre) / coarse));
      const sum = weights.reduce((a, b) => a + b, 0);
      for (let k = 0; k < weights.length; k++) largest = Math.max(largest, weights[k] /= sum);
      if (i >= start && i < start + count) taps.push([first, weights]);
    }
    let bits = 22;
    if (byPyTorch && filter !== "box" && filter !== "hamming") { // which Pillow alone has
      while (bits > 0 && Math.trunc(0.5 + largest * 2 ** bits) >= 32768) bits--;
    }
    const one = 2 ** bits;
    const whole = (w) => Math.trunc(w * one + (w < 0 ? -0.5 : 0.5));
    return { one, taps: taps.map(([first, weights]) => [first, weights.map(whole)]) };
  }

  /* An image resized along one axis: `step` lies between neighbours on that axis, `across` between neighbours on the
     other, of which there are `others`. Three levels a pixel. */
  function resized(levels, step, across, others, { one, taps }) {
    const made = new Uint8Array(taps.length * others * 3);
    taps.forEach(([first, weights], place) => {
      for (let other = 0; other < others; other++) {
        const to = step === 3 ? other * taps.length + place : place * others + other;
        for (let c = 0; c < 3; c++) {
          let sum = one / 2;
          for (let k = 0, at = first * step + other * across + c; k < weights.length; k++, at += step) {
            sum += levels[at] * weights[k];
          }
          made[to * 3 + c] = Math.max(0, Math.min(255, Math.floor(sum / one)));
        }
      }
    });
    return made;
  }

  /* Levels of red, green and blue, of an image with or without alpha; white shines through. */
  function opaque({ data, width, height }) {
    const channels = data.length / (width * height);
    if (channels === 3) return data;
    const levels = new Uint8Array(width * height * 3);
    for (let i = 0; i < width * height; i++) {
      const alpha = data[4 * i + 3];
      for (let c = 0; c < 3; c++) {
        const sum = (data[4 * i + c] * alpha + 255 * (255 - alpha) + 128) * 128;
        levels[3 * i + c] = ((sum >> 8) + sum) >> 15;
      }
    }
    return levels;
  }

  /* Where a crop of the centre begins; negative where black is added. */
  function cropStart(length, crop, rounding) {
    const half = Math.floor((length - crop) / 2);
    const odd = length - crop - 2 * half;
    if (rounding === "even") return half + odd * (half < 0 || half % 2 ? 1 : 0);
    return half + odd * (half < 0 && rounding === "zero" ? 1 : 0);
  }

  /* What the network takes of an image: Float32Array of 3 x height x width values, the channels one after the other.
     `image` is {data, width, height} with three or four levels a pixel, as ImageData is, turned upright. */
  function pixelValues(image, settings = SETTINGS.preprocessing) {
    const given = [image.height, image.width];
    let target = given;
    if (settings.resize === "exact") target = settings.size;
    if (settings.resize === "shortest") {
      target = given.map((length) => Math.floor((settings.size[0] * length) / Math.min(...given)));
    }
    const crop = settings.crop || target;
    const start = [0, 1].map((axis) => cropStart(target[axis], crop[axis], settings.crop_rounding));
    const first = start.map((place) => Math.max(0, place));
    const kept = [0, 1].map((axis) => Math.min(start[axis] + crop[axis], target[axis]) - first[axis]);
    const [height, width] = settings.input_size;
    if (crop[0] !== height || crop[1] !== width) {
      throw new RangeError(`an image of ${width} x ${height} pixels is expected, got ${image.width} x ${image.height}`);
    }
    const weights = [0, 1].map((axis) => (
      settings.resize
        ? weightsOf(given[axis], target[axis], first[axis], kept[axis], settings.filter, settings.crop_rounding === "zero")
        : { one: 1, taps: Array.from({ length: kept[axis] }, (_, i) => [first[axis] + i, [1]]) }
    ));
    // The width, then the height, each rounded to a level.
    const narrow = resized(opaque(image), 3, 3 * given[1], given[0], weights[1]);
    const levels = resized(narrow, 3 * kept[1], 3, kept[1], weights[0]);
    const values = new Float32Array(3 * height * width);
    for (let c = 0; c < 3; c++) {
      const slope = Math.fround(settings.scale / settings.std[c]);
      const intercept = Math.fround((settings.offset - settings.mean[c]) / settings.std[c]);
      const plane = settings.channel_order === "BGR" ? 2 - c : c;
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const row = y + start[0] - first[0], column = x + start[1] - first[1];
          const inside = row >= 0 && row < kept[0] && column >= 0 && column < kept[1];
          const level = inside ? levels[(row * kept[1] + column) * 3 + c] : 0;
          values[(plane * height + y) * width + x] = Math.fround(Math.fround(level * slope) + intercept);
        }
      }
    }
    return values;
  }

  /* Of the network's logits. */
  function probabilities(logits) {
    const largest = logits.reduce((a, b) => Math.max(a, b));
    const exponentials = Array.from(logits, (value) => Math.exp(value - largest));
    const sum = exponentials.reduce((a, b) => a + b);
    return exponentials.map((value) => value / sum);
  }

  /* The likeliest labels with their probabilities. */
  function best(values, count = 5) {
    const pairs = Array.from(values, (value, index) => [SETTINGS.labels[index], value]);
    return pairs.sort((a, b) => b[1] - a[1]).slice(0, count);
  }

  /* An image that every language can make: level of pixel (x, y) in channel c, of whole numbers. */
  function goldenImage(kind, width, height) {
    const data = new Uint8Array(width * height * 3);
    for (let i = 0; i < data.length; i++) {
      const c = i % 3, x = ((i - c) / 3) % width, y = (i - c - 3 * x) / (3 * width);
      data[i] = kind === "stripes" ? 255 * ((x + y * c) % 2) : (31 * x * x + 17 * y * y + 5 * x * y + 89 * c) % 256;
    }
    return { data, width, height };
  }

  /* The largest difference from what golden.json tells, in levels of the image: 0 is right, and 2 is as good. */
  function check(golden) {
    const [height, width] = SETTINGS.preprocessing.input_size;
    let largest = 0;
    for (const { kind, width: w, height: h, pixel_values: expected } of golden.cases) {
      const values = pixelValues(goldenImage(kind, w, h));
      for (const [channel, row, column, value] of expected) {
        const difference = Math.abs(values[(channel * height + row) * width + column] - value);
        largest = Math.max(largest, difference / golden.level);
      }
    }
    return largest;
  }

  const api = { SETTINGS, pixelValues, probabilities, best, goldenImage, check };
  globalThis.DeiTPreprocessing = api;
  if (typeof module === "object") module.exports = api;
})();
