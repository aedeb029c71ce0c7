/**
 * What was read of an image's layers, remembered in shared memory: the main thread notes what opening them reads, then
 * the thread that serves the disk notes the rest, and the main thread makes a trace of it in the end. One thread writes
 * at a time.
 */
import type { Trace } from "../format/trace.ts";

/** Reads remembered: 18 MB of memory. What comes after them is not. */
const CAPACITY = 1 << 20;

export interface ReadLog {
  readonly layers: Uint8Array<SharedArrayBuffer>;
  readonly offsets: Float64Array<SharedArrayBuffer>;
  readonly lengths: Float64Array<SharedArrayBuffer>;
  /** Number of reads, and whether no more are wanted. */
  readonly state: Int32Array<SharedArrayBuffer>;
}

const COUNT = 0;
const ENDED = 1;

export function createReadLog(capacity = CAPACITY): ReadLog {
  return {
    layers: new Uint8Array(new SharedArrayBuffer(capacity)),
    offsets: new Float64Array(new SharedArrayBuffer(8 * capacity)),
    lengths: new Float64Array(new SharedArrayBuffer(8 * capacity)),
    state: new Int32Array(new SharedArrayBuffer(8)),
  };
}

/** Ends remembering and returns what was; it does not change any more. */
export function endReadLog({ state, layers, offsets, lengths }: ReadLog): Trace {
  Atomics.store(state, ENDED, 1);
  const count = Atomics.load(state, COUNT);
  return {
    count,
    layers: layers.slice(0, count),
    offsets: offsets.slice(0, count),
    lengths: lengths.slice(0, count),
  };
}

/** Whether it has no room left: later reads were not remembered. */
export function isFull({ state, layers }: ReadLog): boolean {
  return Atomics.load(state, COUNT) === layers.length;
}

/** The writing end of a log. A read is noted piece by piece and remembered only when it succeeds as a whole. */
export class ReadRecorder {
  /** Pieces noted so far lie behind the remembered reads. */
  #noted = 0;

  /** @param top the number of layers less one: layers are given topmost first and remembered bottom first. */
  constructor(
    private readonly log: ReadLog,
    private readonly top: number,
  ) {}

  /** Begins a read, forgetting the pieces of one that did not succeed. */
  begin(): void {
    this.#noted = Atomics.load(this.log.state, COUNT);
  }

  /** Notes bytes of the LSMT stream of the layer at position `layer`. */
  note(layer: number, offset: number, length: number): void {
    const { layers, offsets, lengths } = this.log;
    if (this.#noted === layers.length) return;
    layers[this.#noted] = this.top - layer;
    offsets[this.#noted] = offset;
    lengths[this.#noted++] = length;
  }

  /** The read has succeeded. Pieces that adjoin become one. */
  commit(): void {
    const { layers, offsets, lengths, state } = this.log;
    if (Atomics.load(state, ENDED) !== 0) return;
    let count = Atomics.load(state, COUNT);
    for (let i = count; i < this.#noted; i++) {
      const last = count - 1;
      if (last >= 0 && layers[last] === layers[i] && offsets[last] + lengths[last] === offsets[i]) {
        lengths[last] += lengths[i];
        continue;
      }
      layers[count] = layers[i];
      offsets[count] = offsets[i];
      lengths[count++] = lengths[i];
    }
    Atomics.store(state, COUNT, count);
  }
}
