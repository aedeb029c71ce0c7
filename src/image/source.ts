/** What commands call an image: a file, or a reference. */
import { open, stat } from "node:fs/promises";
import { openFileBlob } from "../blob/file.ts";
import { loadImageConfig } from "./config.ts";
import { type ImageOptions, type OpenImage, openImage, openStack } from "./open.ts";
import { openReference } from "./reference.ts";

/**
 * Opens `source`: the path of an image config (a file that starts with a brace) or of a single layer, else a reference
 * to an image in a registry or OCI layout.
 * @throws OverlaybdError as `openImage` and `openReference`.
 */
export async function openSource(source: string, options: ImageOptions): Promise<OpenImage> {
  if (!(await isFile(source))) return openReference(source, options);
  if (await startsWithBrace(source)) return openImage(await loadImageConfig(source), options);
  return openStack([() => openFileBlob(source)], options.trace, options);
}

async function isFile(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile();
  } catch {
    return false;
  }
}

async function startsWithBrace(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(64), 0, 64, 0);
    return /^(\uFEFF)?\s*\{/.test(buffer.toString("utf8", 0, bytesRead));
  } finally {
    await file.close();
  }
}
