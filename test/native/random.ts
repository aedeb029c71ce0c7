/** A seeded source of test data (mulberry32), so that a failing run can be repeated. */
export function random(seed: number) {
  let state = seed >>> 0;
  /** A whole number from 0 to limit - 1. */
  function below(limit: number): number {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  }
  /** Incompressible bytes. */
  function bytes(length: number): Uint8Array<ArrayBuffer> {
    return Uint8Array.from({ length }, () => below(256));
  }
  /** Bytes that compress to about half: words of a small vocabulary. */
  function text(length: number): Uint8Array<ArrayBuffer> {
    const words = Array.from({ length: 200 }, () => below(1 << 30).toString(36));
    let all = "";
    while (all.length < length) all += `${words[below(words.length)]} `;
    return new Uint8Array(Buffer.from(all.slice(0, length)));
  }
  return { below, bytes, text };
}
