/** The `auths` object of Docker's configuration, of upstream's credential file and of credential servers' answers. */
import { OverlaybdError } from "../../error.ts";
import { isObject, type JsonObject } from "../json.ts";
import type { Credential } from "./source.ts";

/** Docker Hub's credentials are stored under this key, whatever host serves it. */
export const DOCKER_HUB_KEY = "https://index.docker.io/v1/";
const DOCKER_HUB_HOST = "registry-1.docker.io";
/** Other names of that host. */
const DOCKER_HUB_NAMES: readonly string[] = ["docker.io", "index.docker.io"];

/** An object of a file. @throws OverlaybdError E_CONFIG */
export function section(config: JsonObject, name: string, path: string): JsonObject {
  const value = config[name] ?? {};
  if (!isObject(value)) throw new OverlaybdError("E_CONFIG", `${path}: ${name} is not an object`);
  return value;
}

/** The host that a name of a registry stands for. */
export function realHost(name: string): string {
  const host = name.toLowerCase();
  return DOCKER_HUB_NAMES.includes(host) ? DOCKER_HUB_HOST : host;
}

export function isDockerHub(host: string): boolean {
  return realHost(host) === DOCKER_HUB_HOST;
}

/**
 * The credential of the entry whose key is the longest path-wise prefix of host/repository. Keys may be written as URLs.
 * @param file what to call it in errors
 * @throws OverlaybdError E_CONFIG without quoting a secret
 */
export function findCredential(
  config: JsonObject,
  file: string,
  host: string,
  repository: string,
): Credential | undefined {
  const wanted = `${realHost(host)}/${repository}/`;
  let best: { key: string; entry: unknown; length: number } | undefined;
  for (const [key, entry] of Object.entries(section(config, "auths", file))) {
    const place = placeOf(key);
    if (!wanted.startsWith(`${place}/`) || place.length <= (best?.length ?? 0)) continue;
    best = { key, entry, length: place.length };
  }
  return best && parseEntry(best.entry, `${file}: auths[${JSON.stringify(best.key)}]`);
}

function placeOf(key: string): string {
  const [host, ...path] = key
    .replace(/^https?:\/\//, "")
    .replace(/\/v[12]\/?$/, "")
    .replace(/\/$/, "")
    .split("/");
  return [realHost(host), ...path].join("/");
}

function parseEntry(entry: unknown, name: string): Credential | undefined {
  if (!isObject(entry)) throw new OverlaybdError("E_CONFIG", `${name} is not an object`);
  const { auth, username, password, identitytoken } = entry;
  if (typeof identitytoken === "string" && identitytoken !== "") return { identityToken: identitytoken };
  if (typeof auth === "string" && auth !== "") {
    const text = Buffer.from(auth, "base64").toString();
    const colon = text.indexOf(":");
    if (colon < 0) throw new OverlaybdError("E_CONFIG", `${name}: auth is not base64 of user:password`);
    return { username: text.slice(0, colon), password: text.slice(colon + 1) };
  }
  // Entries are left empty when a credential store holds the secret.
  return typeof username === "string" && typeof password === "string" ? { username, password } : undefined;
}
