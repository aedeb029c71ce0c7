/**
 * Loads the C shim (`cffi/`), once per process, from memory.
 *
 * Bun's own extraction of embedded libraries writes to /tmp, which fails on a read-only or noexec /tmp and
 * trusts whatever an earlier run left there. so the bytes go into a memfd and the dynamic linker reads
 * `/proc/self/fd/N`. Every thread must load the same memfd, or it would get a second copy of the library's
 * state; threads after the first find the descriptor by its name. It stays open for the life of the process.
 */
import { dlopen, type FFIFunction, type Symbols } from "bun:ffi";
import { readdirSync, readFileSync, readlinkSync, writeSync } from "node:fs";
// The build makes this file; `import … with { type: "file" }` embeds it in the compiled executable.
import shim from "../../build/shim.so" with { type: "file" };

const MEMFD_NAME = "overlaybd-shim";

let path: string | undefined;

function findLoaded(): string | undefined {
  for (const fd of readdirSync("/proc/self/fd")) {
    try {
      if (readlinkSync(`/proc/self/fd/${fd}`).startsWith(`/memfd:${MEMFD_NAME}`))
        return `/proc/self/fd/${fd}`;
    } catch {
      // The descriptor readdir itself used is gone by now.
    }
  }
  return undefined;
}

function loadIntoMemory(): string {
  const libc = dlopen("libc.so.6", { memfd_create: { args: ["cstring", "u32"], returns: "i32" } });
  const MFD_CLOEXEC = 1;
  const fd = libc.symbols.memfd_create(Buffer.from(`${MEMFD_NAME}\0`), MFD_CLOEXEC);
  if (fd < 0)
    throw new Error("memfd_create failed: the kernel refuses anonymous memory files, which overlaybd needs");
  const bytes = readFileSync(shim);
  for (let written = 0; written < bytes.length; ) written += writeSync(fd, bytes, written);
  return `/proc/self/fd/${fd}`;
}

/** Binds functions of the shim. Symbols are described as `bun:ffi`'s `dlopen` wants them. */
export function bind<const T extends Record<string, FFIFunction>>(symbols: T): Symbols_<T> {
  path ??= findLoaded() ?? loadIntoMemory();
  return dlopen(path, symbols).symbols as Symbols_<T>;
}

type Symbols_<T extends Record<string, FFIFunction>> = ReturnType<typeof dlopen<T>>["symbols"];

export type { Symbols };
