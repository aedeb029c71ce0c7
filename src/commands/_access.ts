/** Options of every command that reaches registries. */
import { consola } from "consola";
import { OverlaybdError } from "../error.ts";
import type { AccessOptions } from "../registry/access.ts";
import { configuredCredentials } from "../registry/credentials/configured.ts";
import { dockerCredentials } from "../registry/credentials/docker.ts";
import { type CredentialSource, firstOf, fixedCredentials } from "../registry/credentials/source.ts";
import { parseProxy } from "../registry/proxy.ts";
import type { ServiceConfig } from "../service/config.ts";
import type { Definitions, Values } from "./_command.ts";

/** Environment variable with the password of `--username`. */
export const PASSWORD_VARIABLE = "OVERLAYBD_PASSWORD";

export const accessArgs = {
  service_config_path: {
    type: "string",
    description:
      "Service config: credentials, cache, and so on (/etc/overlaybd/overlaybd.json, if there is one)",
  },
  plain: { type: "boolean", description: "Use http rather than https for registries", default: false },
  insecure: { type: "boolean", description: "Do not verify registries' TLS certificates", default: false },
  "root-ca": {
    type: "string",
    multiple: true,
    description: "Trust this certificate authority too (PEM file); may be repeated",
  },
  "hosts-dir": {
    type: "string",
    description: "Directory of registry hosts as containerd has it (certs.d): mirrors, certificates",
  },
  proxy: {
    type: "string",
    description: "HTTP proxy, http://HOST[:PORT]; one with a password belongs in the config or HTTPS_PROXY",
  },
  username: {
    type: "string",
    alias: "u",
    description: `Log in as this user, with the password in the environment variable ${PASSWORD_VARIABLE}`,
  },
} as const satisfies Definitions;

type AccessArgs = Partial<Values<typeof accessArgs>>;

/**
 * How registries are reached: as the service config says, where the command line does not say otherwise.
 * @throws OverlaybdError E_CONFIG; E_USAGE also for a secret on the command line, which everybody on the machine can read
 */
export function accessOptions(service: ServiceConfig, args: AccessArgs): AccessOptions {
  const { certificate, key } = service.certificate;
  const warn = (message: string) => consola.warn(message);
  return {
    plain: args.plain,
    tls: {
      insecure: args.insecure,
      authorities: args["root-ca"],
      client: certificate === "" ? undefined : { certificate, key },
    },
    hostsDirectory: args["hosts-dir"] ?? service.hostsDirectory,
    proxy: args.proxy === undefined ? service.proxy : publicProxy(args.proxy),
    accelerator: service.p2p.enable ? service.p2p.address : undefined,
    userAgent: service.userAgent || undefined,
    credentials: args.username
      ? loginCredentials(args.username)
      : firstOf(configuredCredentials(service.credentials, warn), dockerCredentials()),
    warn,
  };
}

function publicProxy(text: string): string {
  const { username, password } = parseProxy(text, "--proxy");
  if (username === "" && password === "") return text;
  throw new OverlaybdError(
    "E_USAGE",
    "--proxy would show its password to everybody on this machine: set it in the service config or HTTPS_PROXY",
  );
}

function loginCredentials(username: string): CredentialSource {
  if (username.includes(":")) {
    const complaint = "--username would show its password to everybody on this machine";
    throw new OverlaybdError(
      "E_USAGE",
      `${complaint}: set it in the environment variable ${PASSWORD_VARIABLE}`,
    );
  }
  const password = process.env[PASSWORD_VARIABLE];
  if (password !== undefined) return fixedCredentials(`${username}:${password}`);
  throw new OverlaybdError("E_USAGE", `--username needs a password in ${PASSWORD_VARIABLE}`);
}
