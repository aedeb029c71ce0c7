/** A worker thread that reads a disk at random places and checks every byte, while the main thread fetches for it. */
import { parentPort, workerData } from "node:worker_threads";
import { VirtualDisk } from "../../src/image/disk.ts";
import type { DiskTables, MissingRange } from "../../src/image/tables.ts";
import { addressOf } from "../../src/native/address.ts";
import { random } from "../fixtures/random.ts";
import { SECTOR } from "./stack.ts";

export interface RacingReader {
  readonly tables: DiskTables;
  readonly model: Uint8Array<SharedArrayBuffer>;
  /** Raised by the main thread when what was missing has been fetched. */
  readonly answers: Int32Array<SharedArrayBuffer>;
  readonly reads: number;
}

/** What the worker says: ranges to fetch, or how it ended. */
export type RacingMessage = { readonly missing: readonly MissingRange[] } | { readonly wrong: string | null };

if (parentPort) {
  const { tables, model, answers, reads } = workerData as RacingReader;
  const say = (message: RacingMessage) => parentPort?.postMessage(message);
  const next = random(21);
  const disk = new VirtualDisk(tables);
  const bytes = new Uint8Array(8 << 20);
  let wrong: string | null = null;
  let asked = 0;
  for (let i = 0; i < reads && wrong === null; i++) {
    const length = SECTOR * (1 + Math.floor(next() * (bytes.length / SECTOR - 1)));
    const offset = SECTOR * Math.floor((next() * (disk.size - length)) / SECTOR);
    for (;;) {
      const missing = disk.read(offset, length, addressOf(bytes));
      if (missing === null) break;
      say({ missing });
      Atomics.wait(answers, 0, asked++);
    }
    const expected = model.subarray(offset, offset + length);
    if (Buffer.compare(bytes.subarray(0, length), expected) !== 0)
      wrong = `${length} bytes at ${offset}, read ${i}`;
  }
  disk.close();
  say({ wrong });
}
