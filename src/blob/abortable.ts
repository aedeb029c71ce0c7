/** The result of `work`, or the signal's reason as soon as it is raised; nobody looks at `work` any more then. */
export async function abortable<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const end = Promise.withResolvers<never>();
  const stop = () => end.reject(signal.reason);
  if (signal.aborted) stop();
  else signal.addEventListener("abort", stop);
  try {
    return await Promise.race([work, end.promise]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** The same for pieces that come one after the other. */
export async function* abortablePieces<T>(
  signal: AbortSignal,
  pieces: AsyncGenerator<T, void>,
): AsyncGenerator<T, void> {
  try {
    for (;;) {
      const { done, value } = await abortable(signal, pieces.next());
      if (done) return;
      yield value;
    }
  } finally {
    // Not waited for: it comes to its end when the piece that is under way has come or has failed.
    pieces.return().catch(() => {});
  }
}
