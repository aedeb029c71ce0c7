/** The main thread's side of an I/O worker: starts it, gives it devices, and fetches what they miss. */
import { closeSync } from "node:fs";
import { MessageChannel, Worker } from "node:worker_threads";
import { OverlaybdError } from "../error.ts";
import type { MissingRange } from "../image/tables.ts";
import { createWake, signalWake } from "../native/queue.ts";
import { programEntry } from "../program.ts";
import { type CounterMemory, createCounters, type DeviceStats, readCounters } from "./counters.ts";
import type { FromWorker, PlainError, ToWorker, WorkerSetup } from "./messages.ts";

/** A disk to serve. */
export interface DiskSource<Description> {
  /** Posted to the worker, which opens the disk from it. */
  readonly disk: Description;
  readonly writable: boolean;
  /** Makes bytes of a layer readable for the worker. */
  fetch(range: MissingRange): Promise<void>;
}

/** A disk that is being served. */
export interface ServedDisk {
  /**
   * Resolves when the kernel has let go of the disk and what was written is durable.
   * @throws OverlaybdError when serving it failed.
   */
  readonly closed: Promise<void>;
  stats(): DeviceStats;
  /** The last fetch that failed; the reads that waited for it got EIO. */
  readonly lastError: unknown;
}

interface Served<Description> extends ServedDisk {
  readonly fd: number;
  readonly source: DiskSource<Description>;
  readonly counters: CounterMemory;
  lastError: unknown;
  readonly ready: PromiseWithResolvers<void>;
  readonly end: PromiseWithResolvers<void>;
}

export class IoWorker<Description> {
  private readonly wake = createWake();
  private readonly port;
  private readonly thread: Worker;
  private readonly devices = new Map<number, Served<Description>>();
  private readonly exited = Promise.withResolvers<void>();
  private next = 1;

  /** Starts a worker thread: `entry` is a module that calls `runWorker`. */
  constructor(entry: string = programEntry) {
    const { port1, port2 } = new MessageChannel();
    this.port = port1;
    this.port.on("message", (message: FromWorker) => this.hear(message));
    const setup = { role: "io", wake: this.wake, port: port2 as never } satisfies WorkerSetup;
    this.thread = new Worker(entry, { workerData: setup, transferList: [port2] });
    this.thread.on("error", (error) => this.lost(error));
    this.thread.on("exit", () => this.exited.resolve());
  }

  /**
   * Serves `source` as file `name` of the FUSE connection `fd`, which belongs to the worker from now on. Resolves when
   * requests are answered.
   * @throws OverlaybdError when the worker cannot open the disk; `fd` is closed then.
   */
  async serve(source: DiskSource<Description>, fd: number, name: string): Promise<ServedDisk> {
    const device = this.next++;
    const counters = createCounters();
    const end = Promise.withResolvers<void>();
    const ready = Promise.withResolvers<void>();
    const served: Served<Description> = {
      fd,
      source,
      counters,
      ready,
      end,
      closed: end.promise,
      lastError: undefined,
      stats: () => readCounters(counters),
    };
    // Whoever holds the device may look at how it ended later, or never.
    end.promise.catch(() => {});
    this.devices.set(device, served);
    this.tell({ kind: "serve", device, fd, name, disk: source.disk, counters });
    await ready.promise;
    return served;
  }

  /** Ends the thread. Devices that are still served fail. */
  async stop(): Promise<void> {
    this.tell({ kind: "stop" });
    await this.exited.promise;
    this.port.close();
    closeSync(this.wake);
  }

  private tell(message: ToWorker<Description>): void {
    this.port.postMessage(message);
    signalWake(this.wake);
  }

  private hear(message: FromWorker): void {
    const served = this.devices.get(message.device);
    if (!served) return;
    if (message.kind === "serving") served.ready.resolve();
    else if (message.kind === "missing") void this.fetch(message.device, served, message);
    else this.ended(message.device, served, message.error);
  }

  private async fetch(device: number, served: Served<Description>, miss: FromWorker & { kind: "missing" }) {
    let failed = false;
    try {
      await served.source.fetch(miss.range);
    } catch (error) {
      served.lastError = error;
      failed = true;
    }
    if (this.devices.has(device)) this.tell({ kind: "settled", device, fetch: miss.fetch, failed });
  }

  private ended(device: number, served: Served<Description>, error: PlainError | undefined): void {
    this.devices.delete(device);
    if (error === undefined) {
      served.end.resolve();
      return;
    }
    const failure = new OverlaybdError(error.code, error.message);
    served.ready.reject(failure);
    served.end.reject(failure);
  }

  /** The thread died of a bug: nobody would ever answer its devices' requests, so their connections are closed. */
  private lost(error: unknown): void {
    for (const [device, served] of this.devices) {
      closeSync(served.fd);
      this.ended(device, served, { code: "E_IO", message: `the I/O worker died: ${error}` });
    }
    this.exited.resolve();
  }
}
