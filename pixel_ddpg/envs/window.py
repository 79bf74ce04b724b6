"""python -m pixel_ddpg.envs.window film.mp4: play a film in a window, until its end or a key."""

import sys

import cv2


def main(path: str) -> None:
    video = cv2.VideoCapture(path)
    pause = max(1, round(1000 / video.get(cv2.CAP_PROP_FPS)))
    while (picture := video.read())[0]:
        cv2.imshow(path, picture[1])
        if cv2.waitKey(pause) != -1:
            break
    cv2.destroyAllWindows()


if __name__ == "__main__":
    main(sys.argv[1])
