/**
 * Content digests, `algorithm:hex` (OCI image-spec, descriptor.md "Digests"). Both registered algorithms are
 * understood; sha256 is what is computed when there is a choice.
 */
import { OverlaybdError } from "../error.ts";

const HEX_LENGTH: Readonly<Record<string, number>> = { sha256: 64, sha512: 128 };
type Algorithm = "sha256" | "sha512";

/** Whether `text` is a well-formed digest of a registered algorithm. Such a text is also safe in a path or URL. */
export function isDigest(text: string): boolean {
  const [algorithm, hex, ...rest] = text.split(":");
  return rest.length === 0 && hex?.length === HEX_LENGTH[algorithm] && /^[0-9a-f]+$/.test(hex);
}

/** Splits a digest. @throws OverlaybdError E_CORRUPT when it is malformed or of an unknown algorithm. */
export function splitDigest(digest: string): { algorithm: Algorithm; hex: string } {
  if (!isDigest(digest)) {
    throw new OverlaybdError(
      "E_CORRUPT",
      `${JSON.stringify(digest.slice(0, 160))} is not a sha256 or sha512 digest`,
    );
  }
  const [algorithm, hex] = digest.split(":");
  return { algorithm: algorithm as Algorithm, hex };
}

/** The sha256 digest of `bytes`. */
export function digestOf(bytes: Uint8Array): string {
  return `sha256:${new Bun.CryptoHasher("sha256").update(bytes).digest("hex")}`;
}

/** Checks a stream of bytes against the digest, and optionally the size, that it is expected to have. */
export class Verifier {
  /** Bytes seen so far. */
  offset = 0;
  readonly #hasher: Bun.CryptoHasher;

  /**
   * @param name what the bytes are, for errors
   * @param size expected size in bytes; absent when only the digest is known
   */
  constructor(
    readonly name: string,
    readonly digest: string,
    readonly size?: number,
  ) {
    this.#hasher = new Bun.CryptoHasher(splitDigest(digest).algorithm);
  }

  /** @throws OverlaybdError E_CORRUPT as soon as there are more bytes than expected. */
  update(bytes: Uint8Array): void {
    this.offset += bytes.byteLength;
    if (this.size !== undefined && this.offset > this.size) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${this.name}: has more than the ${this.size} bytes of its descriptor`,
      );
    }
    this.#hasher.update(bytes);
  }

  /** Call at the end of the bytes. @throws OverlaybdError E_CORRUPT when size or digest do not match. */
  finish(): void {
    if (this.size !== undefined && this.offset !== this.size) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${this.name}: has ${this.offset} bytes, its descriptor says ${this.size}`,
      );
    }
    const actual = `${splitDigest(this.digest).algorithm}:${this.#hasher.digest("hex")}`;
    if (actual !== this.digest) {
      throw new OverlaybdError(
        "E_CORRUPT",
        `${this.name}: content has digest ${actual}, expected ${this.digest}`,
      );
    }
  }
}

/** Checks that all of `bytes` has the digest. @throws OverlaybdError E_CORRUPT naming `name` when not. */
export function verifyDigest(bytes: Uint8Array, digest: string, name: string): void {
  const verifier = new Verifier(name, digest);
  verifier.update(bytes);
  verifier.finish();
}
