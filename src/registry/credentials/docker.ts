/** Docker's `config.json`: `credHelpers`, `auths`, `credsStore`. */
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import { OverlaybdError } from "../../error.ts";
import { type JsonObject, parseJsonObject } from "../json.ts";
import { DOCKER_HUB_KEY, findCredential, isDockerHub, section } from "./auths.ts";
import { askHelper } from "./docker_credential.ts";
import type { CredentialSource } from "./source.ts";

/**
 * Keys of `auths` may be a host or a path below it; the longest wins. A missing file means no credentials.
 * @param path defaults to `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`
 * @throws (when asked) OverlaybdError E_CONFIG when the file or a helper's answer is malformed
 */
export function dockerCredentials(path = defaultConfigPath()): CredentialSource {
  return async (host, repository) => {
    const config = await readConfig(path);
    if (config === undefined) return undefined;
    const key = isDockerHub(host) ? DOCKER_HUB_KEY : host;
    const helpers = section(config, "credHelpers", path);
    const helper = helpers[key] ?? helpers[host] ?? (isDockerHub(host) ? helpers["docker.io"] : undefined);
    if (helper !== undefined) return askHelper(helper, key);
    const credential = findCredential(config, path, host, repository);
    if (credential !== undefined) return credential;
    return config.credsStore === undefined ? undefined : askHelper(config.credsStore, key);
  };
}

function defaultConfigPath(): string {
  return resolve(process.env.DOCKER_CONFIG || join(homedir(), ".docker"), "config.json");
}

async function readConfig(path: string): Promise<JsonObject | undefined> {
  try {
    return parseJsonObject(await readFile(path), path);
  } catch (error) {
    if ((error as { code?: unknown }).code === "ENOENT") return undefined;
    throw new OverlaybdError("E_CONFIG", `cannot read credentials: ${(error as Error).message}`);
  }
}
