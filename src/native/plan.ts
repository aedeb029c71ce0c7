/**
 * Plans: what has to be done to bring the bytes of one read together, written step by step here and executed in one
 * native call (cffi/plan.c). Look-up decides, the plan names, C moves.
 */
import { type Pointer, ptr } from "bun:ffi";
import { check, SystemError } from "./errno.ts";
import { bind } from "./library.ts";

const native = bind({
  shim_plan_open: { args: ["u32", "u32", "i32", "ptr"], returns: "i32" },
  shim_plan_close: { args: ["ptr"], returns: "void" },
  shim_plan_execute: { args: ["ptr", "ptr", "u32", "ptr", "u32", "ptr"], returns: "i32" },
});

// struct plan_step in cffi/shim.h, in 32-bit words. `offset` is a double in words 4 and 5.
const STEP_WORDS = 8;
const KIND = 0;
const TARGET = 1;
const LENGTH = 2;
const FD = 3;
const STORED = 3;
const OFFSET_DOUBLE = 2;
const SCRATCH = 4;
const SKIP = 5;
const TAKE = 6;

const ZERO_STEP = 1;
const COPY_STEP = 2;
const FETCH_STEP = 3;
const BLOCK_STEP = 4;
const CODEC_SHIFT = 8;
const VERIFY = 1 << 16;

/** Why a step failed, indexed by enum plan_cause. */
const CAUSES = [undefined, "system", "checksum", "decompress", "short"] as const;

/** How files are read: 0 pread, 1 libaio, 2 POSIX aio, 3 io_uring; the numbers of the option `ioEngine`. */
export type Engine = 0 | 1 | 2 | 3;

/** What opening each engine asks the system for. */
const ENGINE_CALLS = ["mmap", "io_setup", "aio_read", "io_uring_setup"] as const;

const DEFAULT_STEPS = 1024;
const DEFAULT_SCRATCH_BYTES = 2 << 20;

/** A step as it was asked for; lengths and offsets in bytes. */
export type PlanStep =
  | { kind: "zero"; target: number; length: number }
  | { kind: "copy"; fd: number; offset: number; length: number; target: number }
  | { kind: "fetch"; fd: number; offset: number; length: number; scratch: number }
  | {
      kind: "block";
      codec: 1 | 2;
      checksum: boolean;
      scratch: number;
      storedLength: number;
      plainLength: number;
      skip: number;
      take: number;
      target: number;
    };

/** Executing a plan failed; the destination holds anything. */
export class PlanError extends Error {
  override readonly name = "PlanError";

  /**
   * @param step index of the step that failed, for `Plan.step`
   * @param cause "system": a read failed with `errno` (EINVAL also for a step outside its memory); "short": the file
   * ends inside the range; "checksum" and "decompress": the block is damaged
   */
  constructor(
    readonly step: number,
    override readonly cause: "system" | "checksum" | "decompress" | "short",
    readonly errno: number,
  ) {
    super(
      `step ${step} of a read plan failed: ${cause === "system" ? new SystemError(errno, "pread").message : cause}`,
    );
  }
}

/**
 * A reusable plan and its executor, for one thread. Steps are added in any order, but a block after the fetch that
 * brings its bytes; `target` is an offset in the destination given to `execute`. Adding what does not fit throws a
 * RangeError: ask `full` before, and execute in parts.
 */
export class Plan {
  private readonly words: Uint32Array<ArrayBuffer>;
  private readonly doubles: Float64Array<ArrayBuffer>;
  private readonly failure = new Int32Array(new ArrayBuffer(12));
  private readonly stepsAddress: Pointer;
  private readonly failureAddress: Pointer;
  private readonly executor: Pointer;
  private readonly capacity: number;
  private readonly scratchBytes: number;
  private count = 0;
  private scratchUsed = 0;

  /**
   * @param options.steps most steps of one plan; @param options.scratchBytes most fetched bytes of one plan
   * @throws SystemError EOPNOTSUPP when the system does not offer that engine to this process.
   */
  constructor(options: { steps?: number; scratchBytes?: number; engine?: Engine } = {}) {
    this.capacity = options.steps ?? DEFAULT_STEPS;
    this.scratchBytes = options.scratchBytes ?? DEFAULT_SCRATCH_BYTES;
    const engine = options.engine ?? 0;
    this.words = new Uint32Array(new ArrayBuffer(this.capacity * STEP_WORDS * 4));
    this.doubles = new Float64Array(this.words.buffer);
    this.stepsAddress = ptr(this.words);
    this.failureAddress = ptr(this.failure);
    const handle = new BigUint64Array(1);
    check(native.shim_plan_open(this.capacity, this.scratchBytes, engine, handle), ENGINE_CALLS[engine]);
    this.executor = Number(handle[0]) as Pointer;
  }

  /** Number of steps. */
  get length(): number {
    return this.count;
  }

  /** Whether `stepsNeeded` more steps that fetch `scratchNeeded` bytes do not fit. */
  full(stepsNeeded: number, scratchNeeded: number): boolean {
    return this.count + stepsNeeded > this.capacity || this.scratchUsed + scratchNeeded > this.scratchBytes;
  }

  /** Forgets all steps. */
  reset(): void {
    this.count = 0;
    this.scratchUsed = 0;
  }

  /** Writes `length` zero bytes. */
  zero(target: number, length: number): void {
    this.add(ZERO_STEP, target, length);
  }

  /** Reads file bytes straight to the destination. */
  copy(fd: number, offset: number, length: number, target: number): void {
    this.read(COPY_STEP, fd, offset, length, target);
  }

  /** Reads file bytes to scratch memory, for `block`; returns where they will be there. */
  fetch(fd: number, offset: number, length: number): number {
    const scratch = this.scratchUsed;
    if (scratch + length > this.scratchBytes)
      throw new RangeError(`a plan fetches at most ${this.scratchBytes} bytes, ${length} more do not fit`);
    this.read(FETCH_STEP, fd, offset, length, scratch);
    this.scratchUsed = scratch + length;
    return scratch;
  }

  /**
   * Writes `take` of a compressed block's bytes, from byte `skip` of them on.
   * @param codec 1 LZ4, 2 zstd; @param checksum whether a CRC-32C follows the block and is to be checked
   * @param scratch where the block begins in scratch memory; @param storedLength its bytes there, without checksum
   * @param plainLength its uncompressed length, at most 65536
   */
  block(
    codec: 1 | 2,
    checksum: boolean,
    scratch: number,
    storedLength: number,
    plainLength: number,
    skip: number,
    take: number,
    target: number,
  ): void {
    const at = this.add(BLOCK_STEP | (codec << CODEC_SHIFT) | (checksum ? VERIFY : 0), target, plainLength);
    const { words } = this;
    words[at + STORED] = storedLength;
    words[at + SCRATCH] = scratch;
    words[at + SKIP] = skip;
    words[at + TAKE] = take;
  }

  /**
   * Executes all steps, filling their parts of the `length` bytes of native memory at `address`; what no step names
   * stays as it is. Blocks until done. The steps stay, so `step` can explain an error.
   * @throws PlanError
   */
  execute(address: number, length: number): void {
    const { executor, stepsAddress, count, failureAddress } = this;
    if (
      native.shim_plan_execute(executor, stepsAddress, count, address as Pointer, length, failureAddress) ===
      0
    )
      return;
    const [step, cause, errno] = this.failure;
    throw new PlanError(step, CAUSES[cause] ?? "system", errno);
  }

  /** What step `i` says, for error messages. */
  step(i: number): PlanStep {
    if (!(i >= 0 && i < this.count)) throw new RangeError(`the plan has ${this.count} steps, no step ${i}`);
    const [kind, target, length, third, scratch, skip, take] = this.words.subarray(
      i * STEP_WORDS,
      (i + 1) * STEP_WORDS,
    );
    const offset = this.doubles[i * (STEP_WORDS / 2) + OFFSET_DOUBLE];
    switch (kind & 0xff) {
      case ZERO_STEP:
        return { kind: "zero", target, length };
      case COPY_STEP:
        return { kind: "copy", fd: third, offset, length, target };
      case FETCH_STEP:
        return { kind: "fetch", fd: third, offset, length, scratch: target };
      default: {
        const codec = ((kind >> CODEC_SHIFT) & 0xff) === 1 ? 1 : 2;
        const checksum = (kind & VERIFY) !== 0;
        const place = { scratch, storedLength: third, plainLength: length };
        return { kind: "block", codec, checksum, ...place, skip, take, target };
      }
    }
  }

  /** Frees the executor; the plan must not be used any more. */
  close(): void {
    native.shim_plan_close(this.executor);
  }

  private read(kind: number, fd: number, offset: number, length: number, target: number): void {
    const at = this.add(kind, target, length);
    this.words[at + FD] = fd;
    this.doubles[(at >> 1) + OFFSET_DOUBLE] = offset;
  }

  /** Begins a step; returns its first word's index. */
  private add(kind: number, target: number, length: number): number {
    if (this.count === this.capacity) throw new RangeError(`a plan has at most ${this.capacity} steps`);
    const at = this.count++ * STEP_WORDS;
    this.words[at + KIND] = kind;
    this.words[at + TARGET] = target;
    this.words[at + LENGTH] = length;
    return at;
  }
}
