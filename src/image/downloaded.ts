/** An image whose layers are completed in their own directories while it is served. */
import { BackgroundDownload } from "../blob/background.ts";
import type { FileCache } from "../blob/cache.ts";
import type { DownloadTarget } from "../blob/download.ts";
import type { DownloadConfig } from "../service/config.ts";
import type { OpenImage } from "./open.ts";

export function withDownload(
  image: OpenImage,
  targets: readonly DownloadTarget[],
  cache: FileCache,
  config: DownloadConfig,
): OpenImage {
  let running: BackgroundDownload | undefined;
  return {
    ...image,
    download: () => {
      running ??= new BackgroundDownload(targets, cache, config);
    },
    stats: () => ({ ...image.stats(), download: running?.stats() }),
    close: async () => {
      await running?.stop();
      await image.close();
    },
  };
}
