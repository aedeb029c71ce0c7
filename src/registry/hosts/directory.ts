/** The directory of registry hosts that containerd and Docker know as `certs.d`: one directory for each registry. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { OverlaybdError } from "../../error.ts";
import type { TlsOptions } from "../tls.ts";
import { parseHostsFile } from "./file.ts";
import type { RegistryHost } from "./host.ts";

/** The registry that containerd's and Docker's tools call docker.io. */
const DOCKER_HUB = { host: "registry-1.docker.io", name: "docker.io" };

/** How configuration names a registry: as the first part of an image's name. */
export function namespaceOf(host: string): string {
  return host === DOCKER_HUB.host ? DOCKER_HUB.name : host;
}

/**
 * The hosts that serve a registry's content, in the order in which they are to be asked. Without a directory for it, it is
 * just the registry.
 * @param directory "": there is none
 * @param registry root of the registry's API
 * @throws OverlaybdError E_CONFIG naming the file
 */
export async function findHosts(directory: string, host: string, registry: URL): Promise<RegistryHost[]> {
  const itself: RegistryHost = { root: registry, capabilities: ["pull", "resolve", "push"] };
  if (directory === "") return [itself];
  for (const name of directoryNames(namespaceOf(host))) {
    const path = join(directory, name);
    const files = await list(path);
    if (files === undefined) continue;
    if (!files.includes("hosts.toml")) return [{ ...itself, tls: certificatesAmong(path, files) }];
    const file = join(path, "hosts.toml");
    return parseHostsFile(await read(file), file, registry);
  }
  return [itself];
}

/** In containerd's order. */
function directoryNames(namespace: string): string[] {
  const withPort = /^(.*):(\d+)$/.exec(namespace);
  const escaped = withPort === null ? [] : [`${withPort[1]}_${withPort[2]}_`];
  return [...escaped, namespace, "_default"];
}

async function list(path: string): Promise<string[] | undefined> {
  try {
    return (await readdir(path)).sort();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT") return undefined;
    throw new OverlaybdError("E_CONFIG", `cannot read the hosts directory ${path}: ${message}`, {
      cause: error,
    });
  }
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    throw new OverlaybdError("E_CONFIG", `cannot read ${path}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/** The certificates in a directory as Docker has them; none when it is missing. @throws OverlaybdError E_CONFIG */
export async function findCertificates(path: string): Promise<TlsOptions> {
  return certificatesAmong(path, (await list(path)) ?? []);
}

/** `*.crt` are authorities, `NAME.cert` and `NAME.key` the client's certificate. */
function certificatesAmong(path: string, files: readonly string[]): TlsOptions {
  const authorities = files.filter((name) => name.endsWith(".crt")).map((name) => join(path, name));
  const [certificate] = files.filter((name) => name.endsWith(".cert"));
  if (certificate === undefined) return { authorities };
  const key = certificate.replace(/cert$/, "key");
  if (!files.includes(key)) {
    throw new OverlaybdError("E_CONFIG", `${join(path, certificate)} is there, but its key ${key} is not`);
  }
  return { authorities, client: { certificate: join(path, certificate), key: join(path, key) } };
}
