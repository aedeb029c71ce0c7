/**
 * The I/O worker: a thread that sleeps in one native wait, serves the requests of its devices and never touches the
 * network. The main thread's messages are taken when it signals the wake descriptor: a thread that never returns to
 * its event loop gets no message events.
 */
import { closeSync } from "node:fs";
import { receiveMessageOnPort, workerData } from "node:worker_threads";
import { OverlaybdError } from "../error.ts";
import type { MissingRange } from "../image/tables.ts";
import { RequestBuffer } from "../native/fuse.ts";
import { QueueSet, WAKE_TAG } from "../native/queue.ts";
import type { Disk } from "./disk.ts";
import { ReplyBuffers } from "./fuse/readahead.ts";
import { FuseSession } from "./fuse/session.ts";
import type { FromWorker, PlainError, ToWorker, WorkerSetup } from "./messages.ts";

/** Opens the disk that a "serve" message describes. Synchronous: everything that needs waiting was done before. */
export type OpenDisk<Description> = (description: Description) => Disk;

/** Serves until told to stop. Called once, as all that a worker thread does. */
export function runWorker<Description>(openDisk: OpenDisk<Description>): void {
  new IoLoop(workerData as WorkerSetup, openDisk).run();
}

interface Device {
  readonly fd: number;
  readonly disk: Disk;
  readonly session: FuseSession;
}

class IoLoop<Description> {
  private readonly queues: QueueSet;
  private readonly devices = new Map<number, Device>();
  private readonly buffers = { request: new RequestBuffer(), replies: new ReplyBuffers() };
  private stopped = false;

  constructor(
    private readonly setup: WorkerSetup,
    private readonly openDisk: OpenDisk<Description>,
  ) {
    this.queues = new QueueSet(setup.wake);
  }

  run(): void {
    while (!this.stopped) {
      for (const tag of this.queues.wait()) {
        if (tag === WAKE_TAG) this.takeMessages();
        else this.serve(tag);
      }
    }
    for (const device of this.devices.keys()) this.close(device);
    this.queues.close();
    this.setup.port.close();
  }

  private takeMessages(): void {
    for (;;) {
      const received = receiveMessageOnPort(this.setup.port as never) as
        | { message: ToWorker<Description> }
        | undefined;
      if (!received) return;
      const { message } = received;
      if (message.kind === "stop") this.stopped = true;
      else if (message.kind === "serve") this.open(message);
      else this.guard(message.device, (device) => device.session.settled(message.fetch, message.failed));
    }
  }

  private open(message: ToWorker<Description> & { kind: "serve" }): void {
    const { device: number, fd, name, counters } = message;
    let disk: Disk;
    try {
      disk = this.openDisk(message.disk);
    } catch (error) {
      closeSync(fd);
      this.post({ kind: "closed", device: number, error: plain(error) });
      return;
    }
    const ask = (fetch: number, range: MissingRange) =>
      this.post({ kind: "missing", device: number, fetch, range });
    const session = new FuseSession({ fd, name, disk, counters, ask }, this.buffers);
    this.devices.set(number, { fd, disk, session });
    this.queues.add(fd, number);
    this.post({ kind: "serving", device: number });
  }

  private serve(number: number): void {
    this.guard(number, (device) => {
      if (!device.session.serve()) this.close(number);
    });
  }

  /** Runs one device's work; what goes wrong closes that device and no other. */
  private guard(number: number, work: (device: Device) => void): void {
    const device = this.devices.get(number);
    if (!device) return; // Closed since: a late answer of the network.
    try {
      work(device);
    } catch (error) {
      this.close(number, error);
    }
  }

  private close(number: number, reason?: unknown): void {
    const { fd, disk } = this.devices.get(number) as Device;
    this.devices.delete(number);
    let error = reason;
    try {
      this.queues.remove(fd);
      if (disk.writable) disk.flush();
      disk.close();
    } catch (cause) {
      error ??= cause;
    }
    closeSync(fd);
    this.post({ kind: "closed", device: number, error: error === undefined ? undefined : plain(error) });
  }

  private post(message: FromWorker): void {
    this.setup.port.postMessage(message);
  }
}

function plain(error: unknown): PlainError {
  if (error instanceof OverlaybdError) return { code: error.code, message: error.message };
  return { code: "E_IO", message: error instanceof Error ? error.message : String(error) };
}
