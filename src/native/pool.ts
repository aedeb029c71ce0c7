/**
 * Slow system calls on the shim's thread pool, so that the event loop goes on meanwhile (cffi/pool.c).
 *
 * To add a call: a name here, and what pool.c's first comment says.
 */
import { type Pointer, ptr } from "bun:ffi";
import { check } from "./errno.ts";
import { bind } from "./library.ts";

const native = bind({
  shim_pool_socket: { args: ["ptr"], returns: "i32" },
  shim_pool_open: { args: ["i32", "ptr"], returns: "i32" },
  shim_pool_close: { args: ["ptr"], returns: "void" },
  shim_pool_submit: { args: ["ptr", "u32", "u32", "ptr"], returns: "i32" },
  shim_pool_take: { args: ["ptr", "ptr", "u32"], returns: "i32" },
});

/** The calls by their numbers in cffi/shim.h. */
const JOBS = {
  fsync: 1,
  fdatasync: 2,
  mount: 3,
  umount: 4,
  openServed: 5,
  attachLoop: 6,
  releaseLoop: 7,
  hashChunks: 8,
  hashFileChunks: 9,
} as const;

export type Job = keyof typeof JOBS;

/** A number, a string (passed with a zero byte behind it), or memory that the call reads or fills. */
export type JobArgument = number | string | Uint8Array | Int32Array;

const MAX_ARGUMENTS = 7;
const RESULTS_AT_ONCE = 64;

/**
 * Jobs of one thread. Their results wait until `drain`; a thread that sleeps in its own epoll gives an eventfd to be
 * woken by, and others use `submit`.
 */
export class JobQueue {
  private readonly queue: Pointer;
  private readonly pending = new Map<number, { done: (result: number) => void; memory: unknown }>();
  private readonly results = new Int32Array(RESULTS_AT_ONCE * 2);
  private nextId = 0;

  /** @param wake a non-blocking descriptor that gets 8 bytes written when there are results; close it after this. */
  constructor(wake: number) {
    const handle = new BigUint64Array(1);
    check(native.shim_pool_open(wake, handle), "pool");
    this.queue = Number(handle[0]) as Pointer;
  }

  /** Jobs whose results have not been drained. */
  get size(): number {
    return this.pending.size;
  }

  /** Starts a job. `drain` calls `done` with what the call returned: a number from 0, or a negative errno. */
  start(job: Job, args: readonly JobArgument[], done: (result: number) => void): void {
    if (args.length > MAX_ARGUMENTS) throw new RangeError(`a job has at most ${MAX_ARGUMENTS} arguments`);
    const memory = args.map((arg) => (typeof arg === "string" ? Buffer.from(`${arg}\0`) : arg));
    const values = new Float64Array(MAX_ARGUMENTS);
    values.set(memory.map((arg) => (typeof arg === "number" ? arg : ptr(arg))));
    this.nextId = (this.nextId + 1) | 0;
    check(native.shim_pool_submit(this.queue, this.nextId, JOBS[job], values), job);
    this.pending.set(this.nextId, { done, memory });
  }

  /** Hands out the results that are there. Does not wait. */
  drain(): void {
    for (let count = RESULTS_AT_ONCE; count === RESULTS_AT_ONCE; ) {
      count = native.shim_pool_take(this.queue, this.results, RESULTS_AT_ONCE);
      for (const [id, result] of pairs(this.results.slice(0, count * 2))) {
        const job = this.pending.get(id);
        this.pending.delete(id);
        job?.done(result);
      }
    }
  }

  /** Frees the queue. Only when no job is pending, or the memory their arguments point to outlives this thread. */
  close(): void {
    native.shim_pool_close(this.queue);
  }
}

function* pairs(numbers: Int32Array): Generator<[number, number]> {
  for (let i = 0; i < numbers.length; i += 2) yield [numbers[i], numbers[i + 1]];
}

declare module "bun" {
  // The runtime has this form, and its types have the options; the function's type lacks it.
  function connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>;
}

interface EventLoopQueue {
  jobs: JobQueue;
  socket: Bun.Socket;
}

let eventLoopQueue: Promise<EventLoopQueue> | undefined;

/** The queue that wakes this thread's event loop. Alone it does not keep the process alive; pending jobs do. */
async function openEventLoopQueue(): Promise<EventLoopQueue> {
  const ends = new Int32Array(2);
  check(native.shim_pool_socket(ends), "socketpair");
  const jobs = new JobQueue(ends[1]);
  const data = (socket: Bun.Socket) => {
    jobs.drain();
    if (jobs.size === 0) socket.unref();
  };
  const socket = await Bun.connect({ fd: ends[0], socket: { data } });
  socket.unref();
  return { jobs, socket };
}

/**
 * Runs a job without blocking the event loop; resolves with what the call returned.
 * @param subject what it is about (a path), for the error message
 * @throws SystemError
 */
export async function submit(job: Job, args: readonly JobArgument[], subject?: string): Promise<number> {
  eventLoopQueue ??= openEventLoopQueue();
  const { jobs, socket } = await eventLoopQueue;
  const result = await new Promise<number>((resolve) => {
    jobs.start(job, args, resolve);
    socket.ref();
  });
  return check(result, job, subject);
}

/** fsync(2): everything written to the file, and its size and times, is on disk when it resolves. @throws SystemError */
export async function fsync(fd: number): Promise<void> {
  await submit("fsync", [fd], `fd ${fd}`);
}

/** fdatasync(2): as `fsync`, but times may be lost. @throws SystemError */
export async function fdatasync(fd: number): Promise<void> {
  await submit("fdatasync", [fd], `fd ${fd}`);
}
