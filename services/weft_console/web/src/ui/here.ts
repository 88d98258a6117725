import { useCallback, useEffect, useRef } from "preact/hooks";

/** Says whether the page that asked is still the one that is shown: an answer that comes later leads nobody away. */
export function useIsHere(): () => boolean {
  const isHere = useRef(false);
  useEffect(() => {
    isHere.current = true;
    return () => {
      isHere.current = false;
    };
  }, []);
  return useCallback(() => isHere.current, []);
}
