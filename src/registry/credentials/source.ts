/**
 * Where user names and passwords come from. A source is asked each time a token is needed, so that changed files and
 * rotated secrets are picked up; several sources compose with `firstOf`.
 */
import { OverlaybdError } from "../../error.ts";

export type Credential =
  | { readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, as `docker login` stores it for some registries. */
  | { readonly identityToken: string };

/**
 * The credential for a repository (`ns/name`) of a registry host (with port), or undefined: be anonymous.
 * @param url what is about to be requested
 */
export type CredentialSource = (
  host: string,
  repository: string,
  url?: URL,
) => Promise<Credential | undefined>;

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
  return async (host, repository, url) => {
    for (const source of sources) {
      const credential = await source(host, repository, url);
      if (credential !== undefined) return credential;
    }
    return undefined;
  };
}
