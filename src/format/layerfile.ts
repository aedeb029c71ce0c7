/** A new layer file, from its first byte to the moment it may be trusted. */
import { randomBytes } from "node:crypto";
import { closeSync, existsSync, fstatSync, fsyncSync, linkSync, openSync, renameSync, rmSync } from "node:fs";
import { dirname } from "node:path";
import { OverlaybdError } from "../error.ts";
import { FileSink, type Output, type OutputSink, writing } from "./output.ts";
import type { ByteSink } from "./sink.ts";
import { TarWrapper } from "./tar/wrapper.ts";
import { type ZFileOptions, ZFileWriter } from "./zfile/writer.ts";

export interface LayerFileOptions {
  /** Wrap the file in a tar, which registries want. */
  readonly tar?: boolean;
  /** Compress. */
  readonly zfile?: ZFileOptions;
  /** Replace a file that exists. */
  readonly replace?: boolean;
  /** Permissions before the umask is applied; the tar records them. Default 0644. */
  readonly mode?: number;
  /** The file is only needed as long as this process runs: do not wait for the disk. */
  readonly scratch?: boolean;
}

/**
 * Output of commit, merge and convert: what is written goes through the optional compression and tar wrapper into a
 * file that has its name only once it is complete and on disk. Whatever happens before, under that name is either
 * nothing or what was there; a killed process can leave `<path>.<random>.partial` behind.
 */
export class LayerFile implements ByteSink {
  private readonly output: Output;
  /** The file's name until it is complete. */
  private readonly partial: string;
  private readonly tar: TarWrapper | null;
  private readonly content: OutputSink;
  private open = true;

  /** @throws OverlaybdError E_EXISTS when `path` exists and must not be replaced; E_IO */
  constructor(
    private readonly path: string,
    private readonly options: LayerFileOptions = {},
  ) {
    if (!options.replace && existsSync(path)) throw this.exists();
    this.partial = `${path}.${randomBytes(6).toString("hex")}.partial`;
    this.output = { path, fd: writing(path, () => openSync(this.partial, "wx+", options.mode ?? 0o644)) };
    try {
      this.tar = options.tar ? new TarWrapper(this.output) : null;
      const start = this.tar?.begin() ?? 0;
      this.content = options.zfile
        ? new ZFileWriter(this.output, start, options.zfile)
        : new FileSink(this.output, start);
    } catch (error) {
      this.remove();
      throw error;
    }
  }

  get position(): number {
    return this.content.position;
  }

  write(bytes: Uint8Array): void {
    this.content.write(bytes);
  }

  writeFrom(address: number, length: number): void {
    this.content.writeFrom(address, length);
  }

  writeZeros(length: number): void {
    this.content.writeZeros(length);
  }

  /**
   * Completes the file, makes it durable (unless it is scratch) and gives it its name; returns its size in bytes. After a failure nothing is
   * left of it.
   * @throws OverlaybdError E_IO; E_EXISTS when somebody else made `path` in the meantime
   */
  finish(): number {
    try {
      this.content.finish();
      this.tar?.finish(this.content.storedSize);
      return writing(this.path, () => {
        const { size } = fstatSync(this.output.fd);
        if (!this.options.scratch) fsyncSync(this.output.fd);
        this.publish();
        return size;
      });
    } finally {
      this.abandon();
    }
  }

  /** Throws away what was written, unless `finish` has succeeded. Safe at any time, also twice. */
  abandon(): void {
    if (!this.open) return;
    this.open = false;
    this.content.close();
    this.remove();
  }

  private publish(): void {
    if (this.options.replace) {
      renameSync(this.partial, this.path);
    } else {
      // Unlike a rename, a link fails when the name is taken.
      try {
        linkSync(this.partial, this.path);
      } catch (error) {
        if (error instanceof Error && "code" in error && error.code === "EEXIST") throw this.exists();
        throw error;
      }
    }
    if (this.options.scratch) return;
    const directory = openSync(dirname(this.path), "r");
    fsyncSync(directory);
    closeSync(directory);
  }

  private remove(): void {
    closeSync(this.output.fd);
    rmSync(this.partial, { force: true });
  }

  private exists(): OverlaybdError {
    return new OverlaybdError(
      "E_EXISTS",
      `${this.path} exists already; remove it or ask for it to be replaced`,
    );
  }
}
