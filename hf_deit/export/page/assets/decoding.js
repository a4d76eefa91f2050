"use strict";
/* From an image file to the pixels that the model was trained to see: upright, without colour profiles, white where
   the image is transparent, at full size. Browsers shall not smooth, convert or premultiply anything. */

const decoding = (() => {
  const STRIP = 1 << 22; // pixels that are drawn at once: some browsers have no larger canvas
  const MOST_PIXELS = 24e6; // of what the model is given; larger photographs are shrunk by a whole number first

  const TURNS = {
    // by EXIF's orientation: what a canvas takes, of an image of so many pixels before it is turned
    2: (width, height) => [-1, 0, 0, 1, width, 0],
    3: (width, height) => [-1, 0, 0, -1, width, height],
    4: (width, height) => [1, 0, 0, -1, 0, height],
    5: (width, height) => [0, 1, 1, 0, 0, 0],
    6: (width, height) => [0, 1, -1, 0, height, 0],
    7: (width, height) => [0, -1, -1, 0, height, width],
    8: (width, height) => [0, -1, 1, 0, 0, width],
  };

  /** What a file is, by its first bytes, and whether it has more than 8 bits of grey. */
  function kindOf(bytes) {
    const text = String.fromCharCode(...bytes.slice(0, 32));
    if (text.startsWith("\x89PNG")) {
      return { name: "PNG", isDeepGrey: bytes[24] === 16 && bytes[25] === 0 };
    }
    if (text.startsWith("\xff\xd8")) return { name: "JPEG" };
    if (text.startsWith("GIF8")) return { name: "GIF" };
    if (text.startsWith("BM")) return { name: "BMP" };
    if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return { name: "WebP" };
    if (/^(II\*\0|MM\0\*)/.test(text)) return { name: "TIFF" };
    if (/^ftyp(heic|heix|mif1|hevc)/.test(text.slice(4))) return { name: "HEIC" };
    if (/^ftypavi[fs]/.test(text.slice(4))) return { name: "AVIF" };
    return { name: null };
  }

  /** Reads an image file.
   * @param {Blob} file
   * @param {number} mostPixels above which it is shrunk
   * @returns {Promise<{bitmap: ImageBitmap, width: number, height: number, pixels: Uint8Array, shrunk: number}>}
   *   pixels is (height, width, 3), red, green and blue, of the bitmap shrunk so many times.
   * @throws {Error} with a message for people. */
  async function read(file, mostPixels = MOST_PIXELS) {
    const kind = kindOf(new Uint8Array(await file.slice(0, 64).arrayBuffer()));
    if (kind.isDeepGrey) {
      throw new Error("It has 16 bits of grey per pixel. Scale it to 8 bits first: how, depends on what is white in it.");
    }
    let bitmap;
    try {
      const { content, orientation } = kind.name === "WebP" ? await withoutOrientation(file) : { content: file };
      bitmap = await createImageBitmap(content, {
        imageOrientation: "from-image",
        colorSpaceConversion: "none",
        premultiplyAlpha: "none",
      });
      if (orientation in TURNS) bitmap = await turned(bitmap, orientation);
    } catch {
      throw new Error(
        kind.name
          ? `It is a ${kind.name} file, which this browser cannot read, or it is damaged. Save it as PNG or JPEG.`
          : "It is no image that this browser can read. Save it as PNG or JPEG.",
      );
    }
    const shrunk = Math.ceil(Math.sqrt((bitmap.width * bitmap.height) / mostPixels));
    return { bitmap, shrunk, ...pixelsOf(bitmap, shrunk) };
  }

  /** A WebP file whose EXIF no browser heeds, as some do and some do not, and the orientation that stood there.
   * @returns {Promise<{content: Blob, orientation: number}>} */
  async function withoutOrientation(file) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const view = new DataView(bytes.buffer);
    for (let at = 12; at + 8 <= bytes.length; ) {
      const size = view.getUint32(at + 4, true);
      if (String.fromCharCode(...bytes.subarray(at, at + 4)) === "EXIF") {
        const orientation = orientationOf(bytes.subarray(at + 8, at + 8 + size));
        bytes.set([88, 88, 88, 88], at); // a chunk that is none of WebP's is passed over
        bytes[20] &= ~8; // whether there is EXIF
        return { content: new Blob([bytes]), orientation };
      }
      at += 8 + size + (size % 2);
    }
    return { content: file, orientation: 1 };
  }

  function orientationOf(exif) {
    const start = String.fromCharCode(...exif.subarray(0, 4)) === "Exif" ? 6 : 0;
    const view = new DataView(exif.buffer, exif.byteOffset + start, exif.byteLength - start);
    try {
      const isLittle = view.getUint16(0) === 0x4949;
      const table = view.getUint32(4, isLittle);
      for (let entry = 0; entry < view.getUint16(table, isLittle); entry++) {
        const at = table + 2 + 12 * entry;
        if (view.getUint16(at, isLittle) === 0x0112) return view.getUint16(at + 8, isLittle);
      }
    } catch {
      // it ends before it should: its pixels may be good
    }
    return 1;
  }

  /** A bitmap that is upright, of one that is not. */
  async function turned(bitmap, orientation) {
    const { width, height } = bitmap;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = orientation < 5 ? [width, height] : [height, width];
    const context = canvas.getContext("2d");
    context.setTransform(...TURNS[orientation](width, height));
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    return createImageBitmap(canvas, { premultiplyAlpha: "none" });
  }

  /** The pixels of a bitmap over white; of each block of factor × factor pixels the mean. */
  function pixelsOf(bitmap, factor) {
    const width = Math.ceil(bitmap.width / factor);
    const height = Math.ceil(bitmap.height / factor);
    const pixels = new Uint8Array(width * height * 3);
    const rows = Math.max(1, Math.floor(STRIP / bitmap.width / factor)); // of the result, at once
    const canvas = document.createElement("canvas");
    canvas.width = bitmap.width;
    canvas.height = Math.min(bitmap.height, rows * factor);
    const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    context.imageSmoothingEnabled = false;
    for (let top = 0; top < height; top += rows) {
      const lines = Math.min(rows * factor, bitmap.height - top * factor);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.drawImage(bitmap, 0, top * factor, bitmap.width, lines, 0, 0, bitmap.width, lines);
      const strip = context.getImageData(0, 0, bitmap.width, lines).data;
      overWhite(strip);
      shrinkInto(pixels, top * width, width, strip, bitmap.width, lines, factor);
    }
    return { width, height, pixels };
  }

  /** Red, green, blue and alpha, over white, in place. */
  function overWhite(data) {
    for (let i = 3; i < data.length; i += 4) {
      const alpha = data[i];
      if (alpha === 255) continue;
      for (let channel = i - 3; channel < i; channel++) {
        data[channel] = Math.round((data[channel] * alpha + 255 * (255 - alpha)) / 255);
      }
    }
  }

  function shrinkInto(pixels, start, width, strip, stripWidth, lines, factor) {
    let to = start * 3;
    for (let top = 0; top < lines; top += factor) {
      const bottom = Math.min(top + factor, lines);
      for (let column = 0; column < width; column++) {
        const left = column * factor;
        const right = Math.min(left + factor, stripWidth);
        let red = 0, green = 0, blue = 0;
        for (let y = top; y < bottom; y++) {
          for (let i = (y * stripWidth + left) * 4; i < (y * stripWidth + right) * 4; i += 4) {
            red += strip[i];
            green += strip[i + 1];
            blue += strip[i + 2];
          }
        }
        const count = (bottom - top) * (right - left);
        pixels[to++] = Math.round(red / count);
        pixels[to++] = Math.round(green / count);
        pixels[to++] = Math.round(blue / count);
      }
    }
  }

  return { read };
})();
