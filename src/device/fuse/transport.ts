/**
 * The transport for anywhere: the disk is a file in a FUSE file system, and a loop device over that file is the block
 * device. Neither the file system nor the device has an owner that could forget it: the mount has no path and lives by
 * the open file, the file by the loop device, the device by its users. Whoever dies first, the kernel undoes the rest.
 */
import { closeSync } from "node:fs";
import { OverlaybdError } from "../../error.ts";
import { mountFuse, openFuse } from "../../native/fuse.ts";
import { attachLoop, type Loop, openServed, releaseLoop } from "../../native/mount.ts";
import type { DiskSource, IoWorker, ServedDisk } from "../io_worker.ts";
import type { Device, Transport } from "../transport.ts";

export class FuseTransport<Description> implements Transport<Description> {
  private turn = 0;

  /** Devices are spread over `workers`, which the caller stops when all devices are detached. */
  constructor(private readonly workers: readonly IoWorker<Description>[]) {}

  async attach(source: DiskSource<Description>, name: string): Promise<Device> {
    const worker = this.workers[this.turn++ % this.workers.length];
    const { connection, root } = connect();
    let served: ServedDisk;
    try {
      served = await worker.serve(source, connection, name);
    } catch (error) {
      closeSync(root);
      throw error;
    }
    try {
      return new FuseDevice(served, await showAsLoop(root, name, source.writable));
    } catch (cause) {
      throw new OverlaybdError("E_IO", `${name} cannot be shown as a loop device: ${reason(cause)}`, {
        cause,
      });
    } finally {
      // Without a loop device that holds the file, this unmounts, and the session ends.
      closeSync(root);
    }
  }
}

class FuseDevice implements Device {
  private released: Promise<void> | undefined;

  constructor(
    private readonly served: ServedDisk,
    private readonly loop: Loop,
  ) {}

  get path(): string {
    return this.loop.path;
  }

  async detach(): Promise<void> {
    this.released ??= releaseLoop(this.loop);
    await this.released;
    await this.served.closed;
  }

  stats() {
    return this.served.stats();
  }

  lastError() {
    return this.served.lastError;
  }
}

/** A connection and the root directory of its mount, which only we can reach. */
function connect(): { connection: number; root: number } {
  try {
    const connection = openFuse();
    try {
      return { connection, root: mountFuse(connection) };
    } catch (error) {
      closeSync(connection);
      throw error;
    }
  } catch (cause) {
    throw new OverlaybdError("E_UNSUPPORTED", `FUSE is not available: ${reason(cause)}`, { cause });
  }
}

/** Opening and configuring read the file: both wait for the worker, on another thread. */
async function showAsLoop(root: number, name: string, writable: boolean): Promise<Loop> {
  const file = await openServed(root, name, writable);
  try {
    return await attachLoop(file, writable);
  } finally {
    closeSync(file);
  }
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
