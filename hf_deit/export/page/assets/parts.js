"use strict";
/* What the scripts of a page tell each other. A page in a folder may load scripts of that folder, and no other files: so
   files are scripts that register a part of them each, compressed with gzip and written in base64. */

const hfDeit = (() => {
  const parts = {};
  let notify = () => {};

  function bytesOf(text) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const characters = atob(text);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    return bytes;
  }

  return {
    settings: null, // see settings.js
    examples: [],
    bytesOf,

    /** A script's content: part `number` of the file `name`. */
    part(name, number, text) {
      (parts[name] ??= [])[number] = bytesOf(text);
      notify();
    },

    /** How many parts of all files are there. */
    count: () => Object.values(parts).reduce((sum, of) => sum + of.filter(Boolean).length, 0),

    /** Calls a function whenever a part has come. */
    onPart(callback) {
      notify = callback;
    },

    /** The content of a file, once; its parts are forgotten. */
    async whole(name) {
      const packed = new Blob(parts[name]);
      delete parts[name];
      return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    },
  };
})();
