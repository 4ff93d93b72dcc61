"use strict";
// Answers the page's requests in the browser, with the ONNX files in model/, as the server's routes do. N pictures, L tokens, Z latent width.
window.answer = (() => {
  const MASK64 = (1n << 64n) - 1n;
  const encoded = new Map(); // prompt -> {words, sentence, length}
  const { megabytes } = document.currentScript.dataset;
  let turn = Promise.resolve();

  async function load(path) {
    const answer = await fetch(path).catch(() => null);
    if (!answer?.ok) throw new Error("cannot load " + path + " (" + (answer?.status ?? "no answer") + ")");
    return answer;
  }

  const ready = (async () => {
    if (location.protocol === "file:") {
      throw new Error("Browsers do not run this page from a file: run python -m http.server in its folder, and open http://localhost:8000");
    }
    const [ort, { Tokenizer }, facts, json] = await Promise.all([
      import("./vendor/ort.wasm.bundle.min.mjs"), import("./vendor/tokenizers.min.mjs"),
      load("model/model.json").then(file => file.json()), load("model/tokenizer.json").then(file => file.json()),
    ]);
    ort.env.wasm.numThreads = 1; // more need headers that few static hosts send
    ort.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", location.href).href };
    const session = async name => ort.InferenceSession.create(new Uint8Array(await (await load("model/" + name)).arrayBuffer()));
    const [encoder, generator] = [await session(facts.files.encoder), await session(facts.files.generator)];
    if (!facts.most_kept) document.querySelector("option[value=mix]").remove();
    return { ort, tokenizer: new Tokenizer(json, {}), facts, words: new Set(["a", "an", "the", ...facts.words]), encoder, generator };
  })();
  ready.catch(() => {}); // each request says it

  // BLAKE2b of a short text, to 8 bytes, as a little-endian integer (RFC 7693).
  function blake2b(text) {
    const initial = [0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
      0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n];
    const orders = ["0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
      "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0"];
    const bytes = new Uint8Array(128), length = new TextEncoder().encodeInto(text, bytes).written;
    const message = new BigUint64Array(bytes.buffer);
    const state = [...initial];
    state[0] ^= 0x01010008n; // no key, 8 bytes of digest
    const v = [...state, ...initial];
    v[12] ^= BigInt(length);
    v[14] ^= MASK64;
    const turned = (x, bits) => ((x >> bits) | (x << (64n - bits))) & MASK64;
    const mix = (a, b, c, d, x, y) => {
      v[a] = (v[a] + v[b] + x) & MASK64; v[d] = turned(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK64; v[b] = turned(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + y) & MASK64; v[d] = turned(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK64; v[b] = turned(v[b] ^ v[c], 63n);
    };
    for (let round = 0; round < 12; round++) {
      const m = [...orders[round % 10]].map(digit => message[parseInt(digit, 16)]);
      for (let i = 0; i < 4; i++) mix(i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1]);
      for (let i = 0; i < 4; i++) mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[8 + 2 * i], m[9 + 2 * i]);
    }
    return state[0] ^ v[0] ^ v[8];
  }

  // The Mersenne Twister MT19937: a function that returns its next 32 bits.
  function twister(seed) {
    const state = new Uint32Array(624);
    state[0] = seed;
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    let next = 624;
    return () => {
      if (next === 624) {
        for (let i = 0; i < 624; i++) {
          const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
          state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
        }
        next = 0;
      }
      let y = state[next++];
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      return (y ^ (y >>> 18)) >>> 0;
    };
  }

  // The z [Z] that torch.randn draws for a key; draw.py in model/ has the same in numpy, with reasons.
  function latent(key, width) {
    const bits = twister(Number((blake2b(key) >> 1n) & 0xffffffffn));
    const normal = (radius, angle) => {
      const r = Math.sqrt(-2 * Math.log1p(-radius));
      return [r * Math.cos(2 * Math.PI * angle), r * Math.sin(2 * Math.PI * angle)];
    };
    const z = new Float32Array(width);
    if (width < 16) {
      const uniform = () => { const high = bits() & 0x1fffff; return (high * 2 ** 32 + bits()) / 2 ** 53; };
      for (let i = 0; i < width; i += 2) {
        const angle = uniform();
        z.set(normal(uniform(), angle).slice(0, width - i), i);
      }
      return z;
    }
    const uniform = count => Array.from({ length: count }, () => (bits() & 0xffffff) / 2 ** 24);
    const block = (u, start) => { for (let i = 0; i < 8; i++) [z[start + i], z[start + 8 + i]] = normal(u[i], u[8 + i]); };
    const all = uniform(width);
    for (let start = 0; start + 16 <= width; start += 16) block(all.slice(start, start + 16), start);
    if (width % 16) block(uniform(16), width - 16);
    return z;
  }

  const norm = z => Math.sqrt(z.reduce((sum, value) => sum + value * value, 0));

  function near(seed, x, y, width) {
    const z = latent(seed + "/z", width);
    if (!x && !y) return z;
    const [across, down] = [0, 1].map(index => latent(seed + "/variation/" + index, width));
    const moved = z.map((value, i) => value + x * across[i] + y * down[i]);
    return moved.map(value => value * norm(z) / norm(moved));
  }

  async function encode(prompt) {
    if (encoded.has(prompt)) return encoded.get(prompt);
    const { ort, tokenizer, facts, encoder } = await ready;
    let { ids } = tokenizer.encode(prompt);
    if (ids.length > facts.max_tokens) ids = [...ids.slice(0, facts.max_tokens - 1), ids.at(-1)];
    const shape = [1, ids.length];
    const inputs = { ids: new ort.Tensor("int64", ids.map(BigInt), shape), mask: new ort.Tensor("bool", ids.map(() => 1), shape) };
    const { words, sentence } = await encoder.run(inputs);
    if (encoded.size > 64) encoded.clear();
    encoded.set(prompt, { words: words.data, sentence: sentence.data, length: ids.length });
    return encoded.get(prompt);
  }

  // A prompt at t of the way from one to another; where one is shorter, its last token stands in.
  function blend(a, b, t) {
    if (t === 0 || t === 1) return t ? b : a;
    const width = a.sentence.length, length = Math.max(a.length, b.length);
    const between = (x, y) => x + t * (y - x);
    const at = (text, i) => text.words[Math.min(Math.floor(i / width), text.length - 1) * width + i % width];
    const words = Float32Array.from({ length: length * width }, (_, i) => between(at(a, i), at(b, i)));
    return { words, sentence: a.sentence.map((x, i) => between(x, b.sentence[i])), length };
  }

  // Prompts as the rows of a batch, padded to the longest.
  function batch(ort, texts) {
    const N = texts.length, width = texts[0].sentence.length, length = Math.max(...texts.map(text => text.length));
    const words = new Float32Array(N * length * width), mask = new Uint8Array(N * length), sentence = new Float32Array(N * width);
    texts.forEach((text, row) => {
      words.set(text.words, row * length * width);
      mask.fill(1, row * length, row * length + text.length);
      sentence.set(text.sentence, row * width);
    });
    return {
      words: new ort.Tensor("float32", words, [N, length, width]), mask: new ort.Tensor("bool", mask, [N, length]),
      sentence: new ort.Tensor("float32", sentence, [N, width]),
    };
  }

  // Pixels uint8 [R, R, C] of a point of the page. A mix is the second row of two, after `kept` blocks with the features of the first.
  async function draw({ prompt, to, t, mixed, seed, x = 0, y = 0, truncation }) {
    const { ort, facts, generator } = await ready, R = facts.resolution, C = facts.channels;
    const kept = mixed && t > 0 && t < 1 ? Math.ceil((1 - t) * facts.most_kept) : 0;
    const texts = [await encode(prompt)];
    if (to !== undefined) texts.push(await encode(to));
    const rows = kept || to === undefined ? texts : [blend(...texts, t)], N = rows.length, z = near(seed, x, y, facts.z_width);
    const { image } = await generator.run({
      ...batch(ort, rows), z: new ort.Tensor("float32", rows.flatMap(() => [...z]), [N, z.length]),
      truncation: new ort.Tensor("float32", [truncation], []), kept: new ort.Tensor("int64", [BigInt(kept)], []),
    });
    const last = image.data.subarray((N - 1) * C * R * R);
    const level = (c, i) => (Math.min(1, Math.max(-1, last[c * R * R + i])) + 1) * 127.5;
    const pixels = new Uint8Array(R * R * C);
    for (let i = 0; i < R * R; i++) {
      const alpha = C === 4 ? Math.round(level(3, i)) : 255;
      for (let c = 0; c < 3; c++) pixels[i * C + c] = alpha ? Math.round(Math.min(255, level(c, i) * 255 / alpha)) : 0;
      if (C === 4) pixels[i * C + 3] = alpha;
    }
    return pixels;
  }

  // A PNG of pixels [R, R, C] with XMP metadata, which say that a model made the picture; C = 2 is grey with alpha.
  async function png(pixels, side, xmp = "") {
    const channels = pixels.length / side ** 2, text = new TextEncoder();
    const rows = new Uint8Array(side * (side * channels + 1));
    for (let row = 0; row < side; row++) rows.set(pixels.subarray(row * side * channels, (row + 1) * side * channels), row * (side * channels + 1) + 1);
    const packed = await new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
    const header = new Uint8Array(13);
    new DataView(header.buffer).setUint32(0, side);
    new DataView(header.buffer).setUint32(4, side);
    header.set([8, { 2: 4, 3: 2, 4: 6 }[channels]], 8);
    const chunk = (kind, data) => {
      const whole = new Uint8Array(12 + data.length), view = new DataView(whole.buffer);
      view.setUint32(0, data.length);
      whole.set(text.encode(kind), 4);
      whole.set(data, 8);
      let crc = -1;
      for (const byte of whole.subarray(4, 8 + data.length)) {
        crc ^= byte;
        for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
      }
      view.setUint32(8 + data.length, ~crc);
      return whole;
    };
    const marks = xmp ? [chunk("iTXt", text.encode("XML:com.adobe.xmp\0\0\0\0\0" + xmp))] : [];
    const parts = [chunk("IHDR", header), ...marks, chunk("IDAT", new Uint8Array(packed)), chunk("IEND", new Uint8Array())];
    return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), ...parts], { type: "image/png" });
  }

  async function effects({ prompt, ...point }, signal) {
    const { facts, tokenizer } = await ready, words = prompt.split(/\s+/).filter(Boolean), R = facts.resolution, C = facts.channels;
    if (words.length < 2 || words.length > 24 || tokenizer.encode(words.join(" ")).ids.length > facts.max_tokens) return [];
    const onGrey = (pixels, i, c) => { const alpha = C === 4 ? pixels[i * C + 3] / 255 : 1; return alpha * pixels[i * C + c] + (1 - alpha) * 128; };
    const drawn = await draw({ ...point, prompt: words.join(" ") }), changes = [];
    for (const index of words.keys()) {
      signal?.throwIfAborted();
      await new Promise(resolve => setTimeout(resolve)); // the page goes on
      const without = await draw({ ...point, prompt: words.filter((_, each) => each !== index).join(" ") });
      changes.push(Float32Array.from({ length: R * R }, (_, i) =>
        [0, 1, 2].reduce((sum, c) => sum + Math.abs(onGrey(without, i, c) - onGrey(drawn, i, c)), 0) / 765));
    }
    const largest = Math.max(...changes.map(change => change.reduce((a, b) => Math.max(a, b)))) || 1;
    return Promise.all(changes.map(async change => {
      const alpha = new Uint8Array(2 * R * R);
      change.forEach((value, i) => { alpha[2 * i + 1] = Math.round(255 * (1 - Math.sqrt(value / largest))); });
      const bytes = new Uint8Array(await (await png(alpha, R)).arrayBuffer());
      return { share: change.reduce((a, b) => a + b) / (R * R), mask: btoa(String.fromCharCode(...bytes)) };
    }));
  }

  const routes = {
    about: async () => { const { facts } = await ready; return { name: facts.name, resolution: facts.resolution, example: facts.example }; },
    draw: async point => { const { facts } = await ready; return png(await draw(point), facts.resolution, facts.xmp); },
    words: async ({ prompt }) => {
      const { facts, tokenizer, words } = await ready;
      const known = word => !facts.words.length || (word.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? []).every(part => words.has(part));
      const tokens = tokenizer.encode(prompt).ids.length;
      return { words: prompt.split(/\s+/).filter(Boolean).map(word => ({ word, known: known(word) })), tokens, max_tokens: facts.max_tokens };
    },
    effects: async (point, signal) => ({ effects: await effects(point, signal) }),
  };

  const answer = (path, body, signal) => turn = turn.catch(() => {}).then(async () => {
    signal?.throwIfAborted();
    const result = await routes[path](body, signal);
    signal?.throwIfAborted();
    return result instanceof Blob ? new Response(result) : Response.json(result);
  });
  return Object.assign(answer, { megabytes, ready });
})();
