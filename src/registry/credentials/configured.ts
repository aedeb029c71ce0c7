/** The credentials that the service config names. */
import { resolve } from "node:path";
import type { CredentialConfig } from "../../service/config.ts";
import { fileCredentials } from "./file.ts";
import { serverCredentials } from "./server.ts";
import type { CredentialSource } from "./source.ts";

/**
 * What goes wrong is no error but means that there are no credentials, as for upstream: an image may well be public.
 * @param warn told about it, without secrets
 */
export function configuredCredentials(
  config: CredentialConfig,
  warn: (message: string) => void,
): CredentialSource {
  if (config.path === "") return async () => undefined;
  const source = config.mode === "file" ? fileCredentials(resolve(config.path)) : serverCredentials(config);
  return async (host, repository, url) => {
    try {
      return await source(host, repository, url);
    } catch (error) {
      warn(`no credentials for ${host}/${repository}, going on without: ${(error as Error).message}`);
      return undefined;
    }
  };
}
