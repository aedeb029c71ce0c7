/**
 * Which refill units of an image's blobs are wanted, in the order in which they were first asked for: from reads of
 * layers, as a trace has them, to few large ranges of blobs.
 */

import { hasUnit } from "../blob/residency.ts";
import type { Trace } from "../format/trace.ts";
import { type BlockTable, blockOffset } from "../format/zfile/blocks.ts";
import type { DiskLayer, MissingRange } from "./tables.ts";

/** Most units that the reads may touch, counted for every read: 1 TiB in units of 256 KiB. */
const MAX_TOUCHED = 1 << 22;

/** One layer that is not wholly on this machine. */
interface Lazy {
  readonly disk: DiskLayer;
  readonly unit: number;
  /** Bit u & 7 of byte u >> 3: unit u is wanted and was not handed out. */
  readonly wanted: Uint8Array;
}

export class WantedUnits {
  readonly #layers: readonly (Lazy | undefined)[];
  /** Triples of layer position, first unit and the one behind the last: one for each read, in order. */
  #spans = new Uint32Array(3 * 1024);
  #count = 0;
  #next = 0;
  #touched = 0;

  /** @param layers topmost first. */
  constructor(layers: readonly DiskLayer[]) {
    this.#layers = layers.map((disk) => {
      const { valid, size } = disk.blob;
      if (!valid) return undefined;
      return { disk, unit: valid.unit, wanted: new Uint8Array(Math.ceil(Math.ceil(size / valid.unit) / 8)) };
    });
  }

  /** Adds the reads of a trace. Those of layers that the image does not have, and what lies outside a layer, are left out. */
  addTrace(trace: Trace): void {
    for (let i = 0; i < trace.count; i++) {
      this.add(this.#layers.length - 1 - trace.layers[i], trace.offsets[i], trace.lengths[i]);
    }
  }

  /** Adds bytes of the LSMT stream of the layer at position `layer`; false when there are too many already. */
  add(layer: number, offset: number, length: number): boolean {
    const lazy = this.#layers[layer];
    if (!lazy) return true;
    const range = storedRange(lazy.disk, offset, length);
    if (!range) return true;
    const first = Math.floor(range.start / lazy.unit);
    const end = Math.ceil(range.end / lazy.unit);
    this.#touched += end - first;
    if (this.#touched > MAX_TOUCHED) return false;
    for (let unit = first; unit < end; unit++) lazy.wanted[unit >>> 3] |= 1 << (unit & 7);
    this.#push(layer, first, end);
    return true;
  }

  /**
   * Takes out the next wanted bytes that are not there: at most about `most`, and further units only if they are
   * wanted too. Null when nothing is left.
   */
  take(most: number): MissingRange | null {
    for (; this.#next < this.#count; this.#next++) {
      const [layer, first, end] = this.#spans.subarray(this.#next * 3, this.#next * 3 + 3);
      const lazy = this.#layers[layer] as Lazy;
      for (let unit = first; unit < end; unit++) {
        if (!this.#claim(lazy, unit)) continue;
        let behind = unit + 1;
        while ((behind + 1 - unit) * lazy.unit <= most && this.#claim(lazy, behind)) behind++;
        // What was handed out of this read is not looked at again.
        this.#spans[this.#next * 3 + 1] = behind;
        const offset = unit * lazy.unit;
        return { layer, offset, length: Math.min(behind * lazy.unit, lazy.disk.blob.size) - offset };
      }
    }
    return null;
  }

  /** Whether the unit is wanted, not handed out before, and not there; it counts as handed out from now on. */
  #claim({ wanted, disk }: Lazy, unit: number): boolean {
    const bit = 1 << (unit & 7);
    if (((wanted[unit >>> 3] ?? 0) & bit) === 0) return false;
    wanted[unit >>> 3] &= ~bit;
    return !(disk.blob.valid && hasUnit(disk.blob.valid, unit));
  }

  #push(layer: number, first: number, end: number): void {
    if (this.#count * 3 === this.#spans.length) {
      const larger = new Uint32Array(this.#spans.length * 2);
      larger.set(this.#spans);
      this.#spans = larger;
    }
    this.#spans.set([layer, first, end], this.#count * 3);
    this.#count++;
  }
}

/** Where bytes of a layer's LSMT stream are stored in its blob; null when the layer ends before them. */
function storedRange(
  { blob, start, blocks }: DiskLayer,
  offset: number,
  length: number,
): { start: number; end: number } | null {
  const end = Math.min(offset + length, blocks ? blocks.plainSize : blob.size - start);
  if (offset < 0 || offset >= end) return null;
  if (!blocks) return { start: start + offset, end: start + end };
  return { start: start + blockAt(blocks, offset), end: start + blockAt(blocks, end + blocks.blockSize - 1) };
}

/** Where the block that holds byte `plain` starts. */
function blockAt(table: BlockTable, plain: number): number {
  return blockOffset(table, Math.floor(plain / table.blockSize));
}
