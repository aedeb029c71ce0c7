/** The source layers of an image: files of an image layout as they are, else downloads that run ahead. */
import { join } from "node:path";
import type { Descriptor } from "../registry/descriptor.ts";
import { LayoutRepository } from "../registry/layout-repository.ts";
import type { Repository } from "../registry/repository.ts";
import { Download } from "./download.ts";
import { fileInput, type Input } from "./input.ts";

/** Source layers that are downloaded at the same time, the one being unpacked included. */
const DOWNLOADS = 3;

/** The source layers of one image, to be opened in order. */
export class LayerInputs {
  readonly #downloads: Download[] = [];

  constructor(
    private readonly repository: Repository,
    private readonly layers: readonly Descriptor[],
    private readonly folder: string,
  ) {}

  /** Opens layer `number`, and starts the downloads of those behind it. */
  async open(number: number): Promise<Input> {
    if (this.repository instanceof LayoutRepository) {
      return fileInput(this.repository.layout.blobPath(this.layers[number].digest), false);
    }
    await this.#downloads[number - 1]?.discard();
    while (this.#downloads.length < Math.min(number + DOWNLOADS, this.layers.length)) {
      const next = this.#downloads.length;
      this.#downloads.push(
        new Download(this.repository, this.layers[next], join(this.folder, `${next}.source`)),
      );
    }
    return this.#downloads[number].open();
  }

  /** Stops all downloads and removes what they brought. */
  async close(): Promise<void> {
    await Promise.all(this.#downloads.map((download) => download.discard()));
  }
}
