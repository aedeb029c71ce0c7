/** Whom a connection trusts, and who it is. */
import { readFile } from "node:fs/promises";
import { getCACertificates, rootCertificates } from "node:tls";
import { OverlaybdError } from "../error.ts";

export interface TlsOptions {
  /** Do not verify the server's certificate. */
  readonly insecure?: boolean;
  /** Paths of PEM files with certificate authorities to trust besides the usual ones. */
  readonly authorities?: readonly string[];
  /** Trust no others than `authorities`. */
  readonly pinned?: boolean;
  /** Paths of PEM files with the client's own certificate and key, which may be the same file. */
  readonly client?: { readonly certificate: string; readonly key: string };
}

let usual: readonly string[] | undefined;

/** The runtime's list, and the system's (also `SSL_CERT_FILE`), to which administrators add theirs. */
function usualAuthorities(): readonly string[] {
  const all = () => [...rootCertificates, ...getCACertificates("system")].map((pem) => pem.trim());
  usual ??= [...new Set(all())];
  return usual;
}

/** The options of the runtime's `fetch`. @throws OverlaybdError E_CONFIG when a file is unusable */
export async function readTls(tls: TlsOptions) {
  const pem = async (path: string, marker: string) => {
    const text = await readFile(path, "utf8").catch((error: Error) => {
      throw new OverlaybdError("E_CONFIG", `cannot read ${path}: ${error.message}`, { cause: error });
    });
    if (!text.includes(marker))
      throw new OverlaybdError("E_CONFIG", `${path} holds no PEM ${marker.slice(5)}`);
    return text;
  };
  const authorities = await Promise.all(
    (tls.authorities ?? []).map((path) => pem(path, "BEGIN CERTIFICATE")),
  );
  return {
    rejectUnauthorized: tls.insecure !== true,
    // A list of authorities replaces the default ones, so they have to be in it.
    ca: [...(tls.pinned ? [] : usualAuthorities()), ...authorities],
    cert: tls.client && (await pem(tls.client.certificate, "BEGIN CERTIFICATE")),
    key: tls.client && (await pem(tls.client.key, "PRIVATE KEY")),
  };
}
