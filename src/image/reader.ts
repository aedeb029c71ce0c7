/**
 * The pieces of one read, turned into plans and executed. A piece lies in one layer and is contiguous there. Nothing
 * here allocates, except when bytes are missing or wrong.
 */
import type { BlobView, Residency } from "../blob/blob.ts";
import { useRange } from "../blob/residency.ts";
import { type BlockTable, blockOffset, CHECKSUM_BYTES, plainLength } from "../format/zfile/blocks.ts";
import { Plan, PlanError } from "../native/plan.ts";
import { damagedRange, explain } from "./failure.ts";
import type { ReadRecorder } from "./read_log.ts";
import type { DiskTables, MissingRange } from "./tables.ts";

/** Adjacent blocks of a ZFile are read from their file together, up to this many stored bytes. */
const FETCH_BYTES = 128 << 10;
/** … and up to this many blocks: highly compressible ones are so short that a plan could not hold their steps. */
const FETCH_BLOCKS = 256;

/** Bytes that were fetched some time are not what they should be: fetching them again may help. */
export class DamagedBytes extends Error {
  constructor(readonly range: MissingRange) {
    super(`damaged bytes at ${range.offset} of layer ${range.layer}`);
  }
}

export class PieceReader {
  readonly #plan: Plan;
  #missing: MissingRange[] = [];
  #address = 0;
  #length = 0;
  // The last block that the plan brings: a piece may begin in the block that the one before ended in.
  #lastLayer = -1;
  #lastBlock = -1;
  #lastScratch = 0;

  /** @param recorder is told of all bytes of layers that are asked for. */
  constructor(
    private readonly tables: Pick<DiskTables, "layers" | "engine" | "upper">,
    private readonly recorder?: ReadRecorder,
  ) {
    this.#plan = new Plan({ engine: tables.engine });
  }

  /** Begins a read into `length` bytes of native memory at `address`, to which all targets are relative. */
  begin(address: number, length: number): void {
    this.#reset();
    this.#address = address;
    this.#length = length;
  }

  zero(target: number, length: number): void {
    if (this.#missing.length > 0) return;
    this.#room(1, 0);
    this.#plan.zero(target, length);
  }

  /** Bytes of a local file that is all there. @throws OverlaybdError E_CORRUPT, E_IO naming blob and place; DamagedBytes. */
  file(fd: number, offset: number, length: number, target: number): void {
    if (this.#missing.length > 0) return;
    this.#room(1, 0);
    this.#plan.copy(fd, offset, length, target);
  }

  /** Bytes [offset, offset + length) of a layer's LSMT stream. @throws as `file` */
  layer(index: number, offset: number, length: number, target: number): void {
    const { blob, start, blocks } = this.tables.layers[index];
    this.recorder?.note(index, offset, length);
    if (blocks) {
      const first = Math.floor(offset / blocks.blockSize);
      const end = Math.floor((offset + length - 1) / blocks.blockSize) + 1;
      if (blob.valid !== undefined) {
        const stored = start + blockOffset(blocks, first);
        this.#require(index, blob, blob.valid, stored, start + blockOffset(blocks, end) - stored);
      }
      if (this.#missing.length === 0) this.#blocks(index, blocks, first, end, offset, length, target);
    } else {
      if (blob.valid !== undefined) this.#require(index, blob, blob.valid, start + offset, length);
      this.file(blob.fd, start + offset, length, target);
    }
  }

  /**
   * Executes what is left. Returns which ranges have to be fetched first, if any; then not all of it was read.
   * @throws as `layer` and `file`
   */
  finish(): readonly MissingRange[] | null {
    if (this.#missing.length > 0) {
      const missing = this.#missing;
      this.#missing = [];
      return missing;
    }
    this.#execute();
    return null;
  }

  close(): void {
    this.#plan.close();
  }

  #blocks(
    index: number,
    table: BlockTable,
    first: number,
    end: number,
    offset: number,
    length: number,
    target: number,
  ): void {
    const { blob, start } = this.tables.layers[index];
    for (let block = first; block < end; ) {
      if (block === this.#lastBlock && index === this.#lastLayer && !this.#plan.full(1, 0)) {
        this.#block(table, block++, this.#lastScratch, offset, length, target);
        continue;
      }
      const runStart = blockOffset(table, block);
      let runEnd = blockOffset(table, block + 1);
      let behind = block + 1;
      for (; behind < Math.min(end, block + FETCH_BLOCKS); behind++) {
        const next = blockOffset(table, behind + 1);
        if (next - runStart > FETCH_BYTES) break;
        runEnd = next;
      }
      this.#room(behind - block + 1, runEnd - runStart);
      const scratch = this.#plan.fetch(blob.fd, start + runStart, runEnd - runStart);
      for (; block < behind; block++) {
        this.#lastScratch = scratch + blockOffset(table, block) - runStart;
        this.#block(table, block, this.#lastScratch, offset, length, target);
      }
      this.#lastLayer = index;
      this.#lastBlock = behind - 1;
    }
  }

  /** Plans the part of one block that belongs to [offset, offset + length). */
  #block(
    table: BlockTable,
    block: number,
    scratch: number,
    offset: number,
    length: number,
    target: number,
  ): void {
    const { codec, checksum } = table;
    const stored =
      blockOffset(table, block + 1) - blockOffset(table, block) - (checksum ? CHECKSUM_BYTES : 0);
    const plain = plainLength(table, block);
    const begin = block * table.blockSize;
    const skip = Math.max(0, offset - begin);
    const take = Math.min(plain, offset + length - begin) - skip;
    this.#plan.block(codec, checksum, scratch, stored, plain, skip, take, target + begin + skip - offset);
  }

  /** Notes bytes of a blob that are not there. */
  #require(layer: number, blob: BlobView, valid: Residency, offset: number, length: number): void {
    if (useRange(valid, offset, length)) return;
    // In whole units, so that reads which miss the same units name the same ranges.
    const begin = Math.floor(offset / valid.unit) * valid.unit;
    const end = Math.min(Math.ceil((offset + length) / valid.unit) * valid.unit, blob.size);
    const last = this.#missing.at(-1);
    if (last?.layer === layer && begin <= last.offset + last.length && end >= last.offset) {
      const from = Math.min(begin, last.offset);
      const to = Math.max(end, last.offset + last.length);
      this.#missing[this.#missing.length - 1] = { layer, offset: from, length: to - from };
    } else {
      this.#missing.push({ layer, offset: begin, length: end - begin });
    }
  }

  /** Executes what is planned when there is no room for more. */
  #room(steps: number, scratchBytes: number): void {
    if (this.#plan.full(steps, scratchBytes)) this.#execute();
  }

  #execute(): void {
    try {
      this.#plan.execute(this.#address, this.#length);
    } catch (error) {
      if (!(error instanceof PlanError)) throw error;
      const damaged = damagedRange(error, this.#plan, this.tables);
      throw damaged ? new DamagedBytes(damaged) : explain(error, this.#plan, this.tables);
    } finally {
      this.#reset();
    }
  }

  #reset(): void {
    this.#plan.reset();
    this.#lastLayer = -1;
    this.#lastBlock = -1;
  }
}
