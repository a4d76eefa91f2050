"use strict";
/* The page: takes an image, asks the model, and shows what it answers and where it looks. Whatever comes from the model
   or from files, such as the names of labels, is put into the page as text, never as HTML. */

(() => {
  const { settings } = hfDeit;
  const element = (id) => document.getElementById(id);
  const TOP = 5;
  const TOP_OF_HEAD = 3;
  const LONGEST_SIDE = 1024; // of the shown image, in pixels
  // Dark to bright, legible over images and to colour-blind readers (matplotlib's inferno).
  const RAMP = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
  const METHODS = { last_layer: "the last layer", rollout: "all layers (rollout)" };
  const TOKENS = { class: "Class token", distillation: "Distillation token" };

  let session = null;
  let turn = 0; // of the images: what an earlier one still brings is not shown
  let shown = null; // {bitmap, name, maps} of the image that is seen

  // ---- What is said -------------------------------------------------------------------------------------------------

  /** Says where things stand; what is seen elsewhere is for screen readers alone. */
  function say(text, isSeen = false) {
    element("status").textContent = text;
    element("status").classList.toggle("hidden", isSeen);
  }

  function complain(text) {
    element("error").textContent = text;
    element("error").hidden = !text;
  }

  const percent = (value) => `${(value * 100).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1)} %`;
  const listed = (number) => number.toLocaleString("en");

  // ---- Loading ------------------------------------------------------------------------------------------------------

  function loadParts() {
    const expected = Object.values(settings.parts).reduce((sum, count) => sum + count, 0);
    const progress = element("progress");
    progress.max = expected;
    progress.hidden = false;
    say("Loading the model …");
    return new Promise((resolve, reject) => {
      const check = () => {
        progress.value = hfDeit.count();
        if (hfDeit.count() === expected) resolve();
      };
      hfDeit.onPart(check);
      check();
      window.addEventListener(
        "error",
        (event) => {
          if (event.target instanceof HTMLScriptElement) {
            const file = event.target.getAttribute("src");
            reject(new Error(`${file} cannot be loaded. Keep index.html together with all files of its folder.`));
          }
        },
        true,
      );
      document.addEventListener("DOMContentLoaded", () => {
        if (hfDeit.count() < expected) reject(new Error("A file of the page's folder is missing. Copy the whole folder."));
      });
    });
  }

  /** A file of the runtime from its network; browsers check that it is the one. */
  async function fetched(name) {
    const { cdn, integrity } = settings.runtime;
    const response = await fetch(cdn + name, { integrity: integrity[name], credentials: "omit" });
    if (!response.ok) throw new Error(`${cdn + name} answers ${response.status}`);
    return response.arrayBuffer();
  }

  async function open() {
    if (!("DecompressionStream" in window) || !("createImageBitmap" in window)) {
      throw new Error("This browser is too old for this page. Take one of 2023 or later.");
    }
    await loadParts();
    const { cdn, glue, binary } = settings.runtime;
    if (!("ort" in window)) throw new Error("The runtime cannot be loaded. Is there a network?");
    const [script, wasmBinary] = await Promise.all(
      cdn ? [fetched(glue), fetched(binary)] : [hfDeit.whole("glue"), hfDeit.whole("binary")],
    );
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = 1; // several need headers of a server
    ort.env.wasm.proxy = false;
    ort.env.wasm.wasmBinary = wasmBinary;
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([script], { type: "text/javascript" })) };
    const model = new Uint8Array(await hfDeit.whole("model"));
    session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], logSeverityLevel: 3 });
    element("progress").hidden = true;
    for (const button of document.querySelectorAll("button")) button.disabled = false;
    element("drop").classList.add("open");
    say("Ready: choose, drop or paste an image.");
  }

  // ---- An image and its answer ----------------------------------------------------------------------------------------

  /** Lets the browser show what has changed before the model keeps it busy. */
  const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

  /** Classifies an image, and shows the answer.
   * @param {Blob} file
   * @param {string} name what to call it
   * @returns {Promise<object|null>} the outputs of the model by their names; null where there is no answer */
  async function classify(file, name) {
    const mine = ++turn;
    complain("");
    if (session === null) {
      complain("The model is not loaded yet.");
      return null;
    }
    say(`Looking at ${name} …`);
    await painted();
    try {
      const start = performance.now();
      const image = await decoding.read(file);
      const decoded = performance.now();
      if (mine !== turn) {
        image.bitmap.close();
        return null;
      }
      const images = new ort.Tensor("uint8", image.pixels, [1, image.height, image.width, 3]);
      const outputs = await answerOf(images);
      const answered = performance.now();
      if (mine !== turn) {
        image.bitmap.close();
        return null;
      }
      shown?.bitmap.close();
      shown = { bitmap: image.bitmap, name, outputs };
      draw();
      showAnswer(outputs, name);
      const shrunk = image.shrunk > 1 ? ` The photograph is very large: it was shrunk to 1 in ${image.shrunk} first.` : "";
      element("time").textContent =
        `${Math.round(answered - decoded)} ms for the answer, ${Math.round(decoded - start)} ms to read the image of ` +
        `${listed(image.bitmap.width)} × ${listed(image.bitmap.height)} pixels.${shrunk}`;
      return outputs;
    } catch (error) {
      if (mine === turn) {
        clear();
        complain(`${name}: ${error?.message ?? `The model fails on it (${error}).`}`);
        say("No answer: choose another image.");
      }
      return null;
    }
  }

  function clear() {
    shown?.bitmap.close();
    shown = null;
    element("picture").hidden = true;
    element("invitation").hidden = false;
    element("result").hidden = true;
    element("none").hidden = false;
    element("attention").hidden = true;
    element("more").hidden = hfDeit.examples.length === 0;
  }

  let before = Promise.resolve(); // the runtime answers one at a time

  function answerOf(images) {
    const answer = before.then(async () => {
      const found = await session.run({ images });
      const entries = Object.entries(found).map(([name, tensor]) => [name, { data: tensor.data, dims: tensor.dims }]);
      for (const tensor of Object.values(found)) tensor.dispose();
      return Object.fromEntries(entries);
    });
    before = answer.catch(() => {});
    return answer;
  }

  function best(values, count) {
    return Array.from(values, (value, index) => ({ value, index }))
      .sort((one, other) => other.value - one.value || one.index - other.index)
      .slice(0, count);
  }

  function showBars(list, values, count) {
    list.replaceChildren(
      ...best(values, count).map(({ value, index }) => {
        const item = document.createElement("li");
        const label = document.createElement("span");
        label.textContent = settings.labels[index];
        label.dir = "auto";
        const number = document.createElement("span");
        number.className = "number";
        number.textContent = percent(value);
        const bar = document.createElement("span");
        bar.className = "bar";
        bar.append(document.createElement("span"));
        bar.firstChild.style.width = `${value * 100}%`;
        item.append(label, number, bar);
        return item;
      }),
    );
  }

  function showAnswer(outputs, name) {
    const { probabilities } = outputs;
    element("none").hidden = true;
    element("result").hidden = false;
    showBars(element("best"), probabilities.data, TOP);
    element("heads").hidden = !settings.hasTwoHeads;
    if (settings.hasTwoHeads) {
      const labels = ["class", "distillation"].map((head) => {
        showBars(element(`head-${head}`), outputs[head].data, TOP_OF_HEAD);
        return settings.labels[best(outputs[head].data, 1)[0].index];
      });
      const fused = { logits: "the mean of both", softmax: "the mean of both", cls: "the class head's" };
      const rule = fused[settings.fusion] ?? "the distillation head's";
      element("agreement").textContent =
        (labels[0] === labels[1] ? "They agree." : "They differ.") + ` The answer above is ${rule}.`;
    }
    const [first, second] = best(probabilities.data, 2);
    const words = (one) => `${settings.labels[one.index]}, ${percent(one.value)}`;
    say(`${name}: ${words(first)}` + (second ? `; then ${words(second)}.` : "."), true);
  }

  // ---- The image, and where the model looks ----------------------------------------------------------------------------

  /** The part of an image that the model is shown, in parts of its width and height: {left, top, width, height}. */
  function seenPart(width, height) {
    const { resize, size, crop } = settings.preprocessing;
    if (crop === null) return { left: 0, top: 0, width: 1, height: 1 };
    let [newHeight, newWidth] = [height, width];
    if (resize === "exact") [newHeight, newWidth] = size;
    if (resize === "shortest") {
      const shorter = Math.min(width, height);
      [newHeight, newWidth] = [height, width].map((side) => Math.floor((size[0] * side) / shorter));
    }
    return {
      left: (newWidth - crop[1]) / 2 / newWidth,
      top: (newHeight - crop[0]) / 2 / newHeight,
      width: crop[1] / newWidth,
      height: crop[0] / newHeight,
    };
  }

  function colourAt(value) {
    const place = Math.min(Math.max(value, 0), 1) * (RAMP.length - 1);
    const index = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[index].map((from, channel) => from + (RAMP[index + 1][channel] - from) * (place - index));
  }

  /** A canvas with one pixel for each value, coloured. */
  function heat(values, columns, rows, highest) {
    const canvas = document.createElement("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    values.forEach((value, index) => image.data.set([...colourAt(value / highest), 150], index * 4));
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function draw() {
    if (shown === null) return;
    const { bitmap, name } = shown;
    const canvas = element("picture");
    const longest = Math.max(bitmap.width, bitmap.height);
    const scale = longest < 256 ? Math.ceil(256 / longest) : Math.min(1, LONGEST_SIDE / longest);
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.hidden = false;
    element("invitation").hidden = true;
    const context = canvas.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = scale < 1;
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const token = document.querySelector("#tokens input:checked")?.value ?? "none";
    element("attention").hidden = settings.tokens.length === 0;
    element("more").hidden = settings.tokens.length + hfDeit.examples.length === 0;
    element("legend").hidden = token === "none";
    canvas.setAttribute("aria-label", token === "none" ? name : `${name}, with the attention of the ${token} token`);
    if (token !== "none") drawAttention(context, canvas, token);
  }

  function drawAttention(context, canvas, token) {
    const map = shown.outputs[element("method").value];
    const [, rows, columns] = map.dims;
    const number = settings.tokens.indexOf(token);
    const values = Array.from(map.data.subarray(number * rows * columns, (number + 1) * rows * columns));
    const highest = Math.max(...values);
    const part = seenPart(shown.bitmap.width, shown.bitmap.height);
    const left = part.left * canvas.width;
    const top = part.top * canvas.height;
    const width = part.width * canvas.width;
    const height = part.height * canvas.height;
    context.fillStyle = "rgb(0 0 0 / 60%)"; // what the model is not shown
    context.beginPath();
    context.rect(0, 0, canvas.width, canvas.height);
    context.rect(left, top, width, height);
    context.fill("evenodd");
    context.imageSmoothingEnabled = false;
    context.drawImage(heat(values, columns, rows, highest), left, top, width, height);
    const place = values.indexOf(highest);
    const third = (index, count, words) => words[Math.floor(((index + 0.5) / count) * 3)];
    const where = [
      third(Math.floor(place / columns), rows, ["upper", "middle", "lower"]),
      third(place % columns, columns, ["left", "centre", "right"]),
    ];
    const hidden = part.width < 0.999 || part.height < 0.999 ? " The model is not shown the dark margin." : "";
    element("attention-words").textContent =
      `The ${token} token looks most at the ${where.join(" ")}: ${percent(highest)} on one of ` +
      `${listed(values.length)} patches.${hidden}`;
  }

  function prepareAttention() {
    const group = element("tokens");
    for (const [value, words] of [["none", "Image only"], ...settings.tokens.map((token) => [token, TOKENS[token]])]) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "token", value, checked: value === "none" });
      input.addEventListener("change", draw);
      label.append(input, words);
      group.append(label);
    }
    const method = element("method");
    method.append(...settings.methods.map((name) => new Option(METHODS[name], name)));
    method.addEventListener("change", draw);
    const context = element("ramp").getContext("2d");
    for (let x = 0; x < 256; x++) {
      context.fillStyle = `rgb(${colourAt(x / 255).join(" ")})`;
      context.fillRect(x, 0, 1, 1);
    }
  }

  // ---- Ways for an image to come ---------------------------------------------------------------------------------------

  function take(files, refusal) {
    const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
    if (file) return classify(file, file.name || "the pasted image");
    complain(refusal);
    return null;
  }

  function prepareSources() {
    const input = element("file");
    element("choose").addEventListener("click", () => input.click());
    element("drop").addEventListener("click", () => element("choose").click()); // keys have the button
    input.addEventListener("change", () => {
      if (input.files.length) take(input.files);
      input.value = ""; // so that the same file can be chosen again
    });
    document.addEventListener("paste", (event) => {
      take(event.clipboardData?.files ?? [], "There is no image in the clipboard: copy one first, not its address.");
    });
    let depth = 0; // of the elements that something is dragged over
    const mark = (change) => {
      depth = Math.max(0, change === 0 ? 0 : depth + change);
      element("drop").classList.toggle("over", depth > 0);
    };
    document.addEventListener("dragenter", () => mark(1));
    document.addEventListener("dragleave", () => mark(-1));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(0);
      take(event.dataTransfer.files, "That is no file: save the image first, then drop its file here.");
    });
  }

  function prepareCamera() {
    const dialog = element("dialog");
    const video = element("video");
    element("camera").addEventListener("click", async () => {
      complain("");
      if (!navigator.mediaDevices?.getUserMedia) {
        complain("This browser gives no camera to this page: it must come from an https address, or from this device.");
        return;
      }
      try {
        video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      } catch (error) {
        const none = error.name === "NotFoundError" || error.name === "OverconstrainedError";
        complain(
          none
            ? "There is no camera on this device. Choose a file instead."
            : "The camera cannot be used: allow it in the browser's settings for this page, and let no other program use it.",
        );
        return;
      }
      dialog.showModal();
    });
    element("close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      for (const track of video.srcObject?.getTracks() ?? []) track.stop();
      video.srcObject = null;
    });
    element("shoot").addEventListener("click", () => {
      if (!video.videoWidth) return; // its first picture is still to come
      const canvas = document.createElement("canvas");
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      dialog.close();
      canvas.toBlob((blob) => classify(blob, "the picture taken"));
    });
  }

  function prepareExamples() {
    const list = document.querySelector("#examples ul");
    element("examples").hidden = element("more").hidden = hfDeit.examples.length === 0;
    for (const { name, label, type, data } of hfDeit.examples) {
      const blob = new Blob([hfDeit.bytesOf(data)], { type });
      const button = document.createElement("button");
      button.type = "button";
      button.disabled = session === null;
      button.title = label ?? name;
      const image = document.createElement("img");
      image.src = URL.createObjectURL(blob);
      image.alt = label === null ? `Example ${name}` : "Example:";
      const caption = document.createElement("span");
      caption.textContent = label ?? "";
      caption.dir = "auto";
      button.append(image, caption);
      button.addEventListener("click", () => classify(blob, label === null ? name : `Example “${label}”`));
      const item = document.createElement("li");
      item.append(button);
      list.append(item);
    }
  }

  // ---- What the page says of its model --------------------------------------------------------------------------------

  function describe() {
    const { proof, runtime, licence, architecture, link } = settings;
    if (link) element("name").href = link;
    element("proof").textContent =
      `How it was checked: on ${percent(proof.agreement)} of ${listed(proof.num_images)} images the model in this page ` +
      `gave the same answer as the trained one, and probabilities differed by ` +
      `${proof.largest_difference.toPrecision(1)} at most (${proof.runtime}).`;
    const about = element("about");
    const words = (text) => about.append(document.createTextNode(text));
    words(`Model: ${architecture}${licence ? `, licence ${licence}` : ", licence not stated"}. Runtime: `);
    if (runtime.cdn) {
      words(`ONNX Runtime Web ${runtime.version} (MIT), loaded from ${new URL(runtime.cdn).host}.`);
    } else {
      const licenceLink = document.createElement("a");
      licenceLink.href = "onnxruntime-LICENSE.txt";
      licenceLink.textContent = "MIT";
      words(`ONNX Runtime Web ${runtime.version} (`);
      about.append(licenceLink);
      words("), in this folder: it works without a network.");
    }
    element("labels").append(
      ...settings.labels.map((label) => {
        const item = document.createElement("li");
        item.textContent = label;
        item.dir = "auto";
        return item;
      }),
    );
  }

  describe();
  prepareAttention();
  prepareSources();
  prepareCamera();
  document.addEventListener("DOMContentLoaded", prepareExamples);
  hfDeit.classify = classify;
  hfDeit.opened = open().then(
    () => true,
    (error) => {
      element("progress").hidden = true;
      say("The model could not be started.");
      complain(error?.message ?? `The runtime fails (${error}).`);
      return false;
    },
  );
})();
