/**
 * Lists of files that are wanted first (cache-download-prefetch.md section 6.5): one path a line, directories with
 * everything below them when they end with a slash, or a slash and an asterisk.
 */
import type { OpenImage } from "./open.ts";
import type { WantedUnits } from "./wanted.ts";

export async function addListedFiles(
  _wanted: WantedUnits,
  _list: Uint8Array,
  _image: OpenImage,
): Promise<void> {}
