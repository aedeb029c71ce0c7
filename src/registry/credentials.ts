/**
 * Where user names and passwords come from. A source is asked each time a token is needed, so that changed files and
 * rotated secrets are picked up; several sources compose with `firstOf`.
 */
import { readFile } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";
import { OverlaybdError } from "../error.ts";
import { isObject, type JsonObject, parseJsonObject } from "./json.ts";

export type Credential =
  | { readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, as `docker login` stores it for some registries. */
  | { readonly identityToken: string };

/** The credential for a repository (`ns/name`) of a registry host (with port), or undefined: be anonymous. */
export type CredentialSource = (host: string, repository: string) => Promise<Credential | undefined>;

/** How credential helpers name an identity token (docker-credential-helpers protocol). */
const IDENTITY_TOKEN_USER = "<token>";
const HELPER_TIMEOUT_MS = 30_000;
/** Docker Hub's credentials are stored under this key, whatever host serves it. */
const DOCKER_HUB_KEY = "https://index.docker.io/v1/";

/** `user:password` for every host, as `--username` takes it. @throws OverlaybdError E_USAGE without a password */
export function fixedCredentials(userAndPassword: string): CredentialSource {
  const colon = userAndPassword.indexOf(":");
  if (colon <= 0) throw new OverlaybdError("E_USAGE", "credentials must be given as USER:PASSWORD");
  const credential = {
    username: userAndPassword.slice(0, colon),
    password: userAndPassword.slice(colon + 1),
  };
  return async () => credential;
}

/** Asks one source after the other. */
export function firstOf(...sources: CredentialSource[]): CredentialSource {
  return async (host, repository) => {
    for (const source of sources) {
      const credential = await source(host, repository);
      if (credential !== undefined) return credential;
    }
    return undefined;
  };
}

/**
 * Docker's `config.json`: `credHelpers`, `auths`, `credsStore`. Keys of `auths` may be a host or a path below it; the
 * longest wins. A missing file means no credentials.
 * @param path defaults to `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`
 * @throws (when asked) OverlaybdError E_CONFIG when the file or a helper's answer is malformed
 */
export function dockerCredentials(path = defaultConfigPath()): CredentialSource {
  return async (host, repository) => {
    const config = await readConfig(path);
    if (config === undefined) return undefined;
    const key = host === "registry-1.docker.io" ? DOCKER_HUB_KEY : host;
    const helpers = section(config, "credHelpers", path);
    const helper = helpers[key] ?? helpers[host];
    if (helper !== undefined) return askHelper(helper, key);

    const stored = findEntry(section(config, "auths", path), host, repository);
    const credential = stored && parseEntry(stored.entry, `${path}: auths[${JSON.stringify(stored.key)}]`);
    if (credential !== undefined) return credential;
    return config.credsStore === undefined ? undefined : askHelper(config.credsStore, key);
  };
}

function defaultConfigPath(): string {
  return join(process.env.DOCKER_CONFIG || join(homedir(), ".docker"), "config.json");
}

async function readConfig(path: string): Promise<JsonObject | undefined> {
  try {
    return parseJsonObject(await readFile(path), path);
  } catch (error) {
    if ((error as { code?: unknown }).code === "ENOENT") return undefined;
    throw new OverlaybdError("E_CONFIG", `cannot read credentials: ${(error as Error).message}`);
  }
}

function section(config: JsonObject, name: string, path: string): JsonObject {
  const value = config[name] ?? {};
  if (!isObject(value)) throw new OverlaybdError("E_CONFIG", `${path}: ${name} is not an object`);
  return value;
}

/** The entry whose key is the longest path-wise prefix of host/repository. Keys may be written as URLs. */
function findEntry(
  auths: JsonObject,
  host: string,
  repository: string,
): { key: string; entry: unknown } | undefined {
  const wanted = `${host}/${repository}/`;
  let best: { key: string; entry: unknown; length: number } | undefined;
  for (const [key, entry] of Object.entries(auths)) {
    const place = key === DOCKER_HUB_KEY || key === "docker.io" ? "registry-1.docker.io" : placeOf(key);
    if (!wanted.startsWith(`${place}/`) || place.length <= (best?.length ?? 0)) continue;
    best = { key, entry, length: place.length };
  }
  return best;
}

function placeOf(key: string): string {
  return key
    .replace(/^https?:\/\//, "")
    .replace(/\/v[12]\/?$/, "")
    .replace(/\/$/, "");
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

/** Runs `docker-credential-NAME get`: the server's key on stdin, JSON on stdout. */
async function askHelper(name: unknown, key: string): Promise<Credential | undefined> {
  if (typeof name !== "string" || !/^[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) {
    throw new OverlaybdError(
      "E_CONFIG",
      `${JSON.stringify(name)} is not the name of a Docker credential helper`,
    );
  }
  const program = `docker-credential-${name}`;
  const path = Bun.which(program, { PATH: process.env.PATH });
  if (path === null) {
    throw new OverlaybdError("E_CONFIG", `the Docker configuration wants ${program}, which is not in PATH`);
  }
  const child = Bun.spawn([path, "get"], {
    stdin: Buffer.from(key),
    stdout: "pipe",
    stderr: "ignore",
    timeout: HELPER_TIMEOUT_MS,
  });
  const output = await new Response(child.stdout).bytes();
  const status = await child.exited;
  // Helpers report "not found" on stdout with a failing status, in words that differ; only that case is harmless.
  if (status !== 0) {
    if (/not found/i.test(Buffer.from(output).toString())) return undefined;
    throw new OverlaybdError("E_AUTH", `${program} get failed for ${key} (exit status ${status})`);
  }
  const { Username: username, Secret: secret } = parseJsonObject(output, `the answer of ${program}`);
  if (typeof username !== "string" || typeof secret !== "string") {
    throw new OverlaybdError("E_CONFIG", `${program} answered without Username or Secret`);
  }
  return username === IDENTITY_TOKEN_USER ? { identityToken: secret } : { username, password: secret };
}
