/** Credential servers, which are told what is to be fetched and answer with `auths` (image-config.md section 3.1). */
import { resolve } from "node:path";
import { OverlaybdError } from "../../error.ts";
import type { CredentialConfig } from "../../service/config.ts";
import { isObject, parseJsonObject } from "../json.ts";
import type { TlsOptions } from "../tls.ts";
import { fetchTransport, type Transport } from "../transport.ts";
import { findCredential } from "./auths.ts";
import type { CredentialSource } from "./source.ts";

const ANSWER_LIMIT = 256 * 1024;
/** Where a server on a Unix socket is asked; the host is only a name. */
const SOCKET_URL = "http://localhost/auth";

/**
 * Asks a server over HTTP, HTTPS or a Unix socket, each time anew and never through a proxy.
 * @throws (when asked) OverlaybdError when there is no answer in time, or none that can be used
 */
export function serverCredentials(config: CredentialConfig): CredentialSource {
  const address = config.mode === "uds" ? SOCKET_URL : config.path;
  const name = config.mode === "uds" ? `credential server ${config.path}` : "credential server";
  const deadline = config.timeout * 1000;
  const socket = config.mode === "uds" ? resolve(config.path) : undefined;
  const tls = tlsOf(config);
  let transport: Promise<Transport> | undefined;
  return async (host, repository, requested) => {
    const url = URL.parse(
      withQuery(address, requested ?? new URL(`https://${host}/v2/${repository}/blobs/`)),
    );
    if (url === null || (config.mode !== "uds" && url.protocol !== `${config.mode}:`)) {
      throw new OverlaybdError(
        "E_CONFIG",
        `credentialConfig.path is not the URL of an ${config.mode} server`,
      );
    }
    transport ??= fetchTransport({ socket, tls });
    const send = await transport;
    const response = await send({ method: "GET", url, subject: name, deadline, patience: deadline });
    if (response.status !== 200) {
      response.discard();
      throw response.error("E_AUTH", `the server answered ${response.status}`);
    }
    const { success, data } = parseJsonObject(
      await response.bytes(ANSWER_LIMIT),
      `the answer of the ${name}`,
    );
    if (success !== true || !isObject(data))
      throw response.error("E_AUTH", "the server did not answer with success");
    return findCredential(data, `the answer of the ${name}`, host, repository);
  };
}

function tlsOf({ clientCertificate, clientKey, serverAuthority }: CredentialConfig): TlsOptions {
  const client = { certificate: resolve(clientCertificate), key: resolve(clientKey || clientCertificate) };
  return {
    authorities: serverAuthority === "" ? [] : [resolve(serverAuthority)],
    pinned: serverAuthority !== "",
    client: clientCertificate === "" ? undefined : client,
  };
}

/** Servers made for upstream get the URL as it is: nothing in it has to be escaped. */
function withQuery(address: string, { origin, pathname }: URL): string {
  return `${address}${address.includes("?") ? "&" : "?"}remote_url=${origin}${pathname}`;
}
