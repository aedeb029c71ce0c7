/**
 * Recording a trace (cache-download-prefetch.md section 6.3). Three files say how it stands: `<path>.lock` is there while
 * recording goes on, and whoever removes it ends it; the trace at `path` is empty until then; `<path>.ok` says that it is
 * complete.
 */
import { access, type FileHandle, open, rm, truncate, writeFile } from "node:fs/promises";
import { consola } from "consola";
import { OverlaybdError } from "../error.ts";
import { encodeTrace } from "../format/trace.ts";
import { createReadLog, endReadLog, isFull, type ReadLog } from "./read_log.ts";

const POLL_MS = 1000;
/** Where a trace's checksum stands: it is written last. */
const CHECKSUM = { offset: 16, length: 4 } as const;

export class Recording {
  /** Takes the reads: see `ReadRecorder`. */
  readonly log: ReadLog = createReadLog();
  readonly #poll: Timer;
  #finished: Promise<void> | undefined;

  private constructor(private readonly path: string) {
    this.#poll = setInterval(() => void this.#look(), POLL_MS).unref();
  }

  /**
   * Begins to record to the file at `path`.
   * @throws OverlaybdError E_BUSY when that goes on already; E_IO.
   */
  static async begin(path: string): Promise<Recording> {
    try {
      await writeFile(lockOf(path), "", { flag: "wx", mode: 0o666 });
    } catch (cause) {
      const { code, message } = cause as NodeJS.ErrnoException;
      if (code !== "EEXIST")
        throw new OverlaybdError("E_IO", `cannot record to ${path}: ${message}`, { cause });
      throw new OverlaybdError(
        "E_BUSY",
        `a trace is being recorded to ${path}; if nobody does, remove ${lockOf(path)}`,
        { cause },
      );
    }
    return new Recording(path);
  }

  /** Writes the trace, unless removing the lock has made that happen before. What goes wrong is logged. */
  finish(): Promise<void> {
    this.#finished ??= this.#finish();
    return this.#finished;
  }

  /** Gives up; the trace stays empty. */
  async abandon(): Promise<void> {
    clearInterval(this.#poll);
    this.#finished = rm(lockOf(this.path), { force: true });
    await this.#finished;
  }

  async #look(): Promise<void> {
    if (!(await exists(lockOf(this.path)))) await this.finish();
  }

  async #finish(): Promise<void> {
    clearInterval(this.#poll);
    const trace = endReadLog(this.log);
    if (isFull(this.log)) consola.warn(`trace ${this.path} holds the first ${trace.count} reads only`);
    try {
      await write(this.path, encodeTrace(trace));
      await rm(lockOf(this.path), { force: true });
      await writeFile(`${this.path}.ok`, "", { flag: "wx" });
    } catch (error) {
      consola.error(`the trace ${this.path} could not be completed: ${error}`);
    }
  }
}

const lockOf = (path: string): string => `${path}.lock`;

/** A trace that was cut short fails its checksum, or is empty where even that cannot be said. */
async function write(path: string, bytes: Uint8Array): Promise<void> {
  let file: FileHandle | undefined;
  try {
    file = await open(path, "r+");
    const unsigned = bytes.slice();
    unsigned.fill(0, CHECKSUM.offset, CHECKSUM.offset + CHECKSUM.length);
    await file.writeFile(unsigned);
    await file.write(bytes, CHECKSUM.offset, CHECKSUM.length, CHECKSUM.offset);
  } catch (error) {
    await truncate(path).catch(() => {});
    throw error;
  } finally {
    await file?.close();
  }
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== "ENOENT",
  );
}
