/** Upstream's credential file: a JSON object with `auths` (image-config.md section 3.2). */
import { readFile } from "node:fs/promises";
import { parseJsonObject } from "../json.ts";
import { findCredential } from "./auths.ts";
import type { CredentialSource } from "./source.ts";

/**
 * Read anew each time, so `path` should not depend on the working directory. A missing file means no credentials.
 * @throws (when asked) OverlaybdError E_CONFIG when the file is malformed; the error of readFile
 */
export function fileCredentials(path: string): CredentialSource {
  return async (host, repository) => {
    const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return undefined;
      throw error;
    });
    return bytes && findCredential(parseJsonObject(bytes, path), path, host, repository);
  };
}
