/** The credentials that the service config names. */
import { resolve } from "node:path";
import type { CredentialConfig } from "../../service/config.ts";
import { fileCredentials } from "./file.ts";
import { serverCredentials } from "./server.ts";
import type { Credential, CredentialSource } from "./source.ts";

/**
 * What goes wrong is no error but means that there are no credentials, as for upstream: an image may well be public. Where
 * there were some before they are used on, so that no mounted image fails with a server that is away for a moment.
 * @param warn told about it, without secrets
 */
export function configuredCredentials(
  config: CredentialConfig,
  warn: (message: string) => void,
): CredentialSource {
  if (config.path === "") return async () => undefined;
  const source = config.mode === "file" ? fileCredentials(resolve(config.path)) : serverCredentials(config);
  const last = new Map<string, Credential | undefined>();
  return async (host, repository, url) => {
    const name = `${host}/${repository}`;
    try {
      const credential = await source(host, repository, url);
      last.set(name, credential);
      return credential;
    } catch (error) {
      const known = last.get(name);
      const way = known === undefined ? "going on without" : "going on with the last ones";
      warn(`no credentials for ${name}, ${way}: ${(error as Error).message}`);
      return known;
    }
  };
}
