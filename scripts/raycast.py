"""A small ray caster: textured surfaces, baked sunlight and skylight, and a camera with a noisy sensor.

World coordinates: metres, x to the right, y up, z away from the viewer. Vectors have their three components
on axis 0. Colours are linear RGB until `develop` makes a photograph of them. `render_sample.py` is the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

SUN = np.array([0.50, 0.72, -0.72])  # towards the sun
SUN_COLOUR = np.float32([1.00, 0.87, 0.68]) * 3.3
SKY_COLOUR = np.float32([0.66, 0.80, 1.00]) * 0.60
BOUNCE_COLOUR = np.float32([0.30, 0.25, 0.20])  # what other surfaces and the ground send back
PENUMBRA = 0.009  # deviation of the sun's direction, in radians: somewhat hazy
LIGHT_SAMPLES = 12  # each for the sun and for the sky, per texel of a light map
NOISE_READ, NOISE_SHOT = 0.0015, 0.00008  # of the sensor, relative to white
TEXEL = 0.027  # of a light map, in metres, at the finest


@dataclass
class Surface:
    """A textured surface with coordinates u (to the right) and v (downwards), both in [0, 1].

    Subclasses give `intersect(origin, direction) -> (t, u, v)`, t infinite where nothing is hit, and
    `point(u, v) -> (position, normal)`; vectors have their 3 components on axis 0.
    """

    texture: np.ndarray  # (h, w, 3 or 4), float32, linear; where there is an alpha < 0.5, there is nothing
    repeat: tuple[float, float] = (1.0, 1.0)  # of the texture, along u and v
    shift: tuple[float, float] = (0.0, 0.0)  # of the texture, in repeats
    light: np.ndarray | None = field(default=None, repr=False)

    def sample(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The texture at u, v: (..., 3 or 4)."""
        u, v = u * self.repeat[0] + self.shift[0], v * self.repeat[1] + self.shift[1]
        return interpolate(self.texture, u - np.floor(u), v - np.floor(v), cv2.BORDER_WRAP)

    def lit(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The light map at u, v: (..., 3)."""
        return interpolate(self.light, u, v, cv2.BORDER_REPLICATE)

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`intersect`, less what lies behind the origin and what the texture's alpha cuts out."""
        t, u, v = self.intersect(origin, direction)
        t = np.where(t > 1e-4, t, np.inf)
        if self.texture.shape[2] == 4:
            some = np.isfinite(t)
            alpha = self.sample(np.where(some, u, 0), np.where(some, v, 0))[..., 3]
            t = np.where(alpha < 0.5, np.inf, t)
        return t, u, v


@dataclass
class Quad(Surface):
    """A rectangle: its corner at u = v = 0, and the two perpendicular edges that start there."""

    corner: np.ndarray = None
    edge_u: np.ndarray = None
    edge_v: np.ndarray = None

    def __post_init__(self):
        self.corner, self.edge_u, self.edge_v = (
            np.asarray(a, np.float32) for a in (self.corner, self.edge_u, self.edge_v)
        )
        self.normal = np.cross(self.edge_u, self.edge_v)
        self.normal /= np.linalg.norm(self.normal)
        self.size = (np.linalg.norm(self.edge_u), np.linalg.norm(self.edge_v))

    def bounds(self) -> np.ndarray:
        steps = ((0, 0), (0, 1), (1, 0), (1, 1))
        return np.stack([self.corner + u * self.edge_u + v * self.edge_v for u, v in steps], 1)

    def intersect(self, origin, direction):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = dot(self.normal, column(self.corner, origin) - origin) / dot(self.normal, direction)
        start = origin - column(self.corner, origin)
        u, v = (
            (dot(e, start) + t * dot(e, direction)) / np.float32(e @ e) for e in (self.edge_u, self.edge_v)
        )
        return np.where((u >= 0) & (u < 1) & (v >= 0) & (v < 1), t, np.inf), u, v

    def point(self, u, v):
        position = column(self.corner, u[None]) + u * column(self.edge_u, u[None])
        position = position + v * column(self.edge_v, u[None])
        return position, np.broadcast_to(column(self.normal, u[None]), position.shape)


@dataclass
class Round(Surface):
    """A ball (`height` 0, around `centre`), or an upright tapered tube without lids, on `centre`."""

    centre: np.ndarray = None
    radius: float = 0.1
    top_radius: float = 0.1
    height: float = 0.0

    def __post_init__(self):
        self.centre = np.asarray(self.centre, np.float32)
        self.size = (6.3 * self.radius, self.height or 3.1 * self.radius)

    def bounds(self) -> np.ndarray:
        wide = max(self.radius, self.top_radius)
        low, high = (0.0, self.height) if self.height else (-wide, wide)
        spans = ((-wide, wide), (low, high), (-wide, wide))
        offsets = np.stack(np.meshgrid(*spans)).reshape(3, 8)
        return (self.centre[:, None] + offsets).astype(np.float32)

    def intersect(self, origin, direction):
        start = origin - column(self.centre, origin)
        weight = np.float32([1, 0 if self.height else 1, 1])
        slope = (self.top_radius - self.radius) / self.height if self.height else 0.0
        radius = self.radius + slope * start[1]
        a = dot(weight, direction * direction) - (slope * direction[1]) ** 2
        b = dot(weight, start * direction) - slope * direction[1] * radius
        c = dot(weight, start * start) - radius**2
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        best = np.full(np.broadcast_shapes(a.shape, c.shape), np.inf, np.float32)
        for sign in (1, -1):  # the near intersection is taken where both count
            t = (-b + sign * root) / a
            y = start[1] + t * direction[1]
            inside = (y >= 0) & (y <= self.height) if self.height else True
            best = np.where((b * b > a * c) & (t > 1e-4) & inside, t, best)
        where = np.where(np.isfinite(best), best, 0)
        x, y, z = (start[i] + where * direction[i] for i in range(3))
        u = np.arctan2(x, -z) / (2 * np.pi) + 0.5
        v = 1 - y / self.height if self.height else np.arccos(np.clip(y / self.radius, -1, 1)) / np.pi
        return best, u, v

    def point(self, u, v):
        angle = (u - 0.5) * 2 * np.pi
        x, z = np.sin(angle), -np.cos(angle)
        if self.height:
            radius = self.top_radius + (self.radius - self.top_radius) * v
            normal = np.stack([x, np.zeros_like(x), z])
            offset = np.stack([x * radius, (1 - v) * self.height, z * radius])
        else:
            normal = np.stack([x * np.sin(v * np.pi), np.cos(v * np.pi), z * np.sin(v * np.pi)])
            offset = normal * self.radius
        return column(self.centre, normal) + offset, normal


def dot(vector: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The dot product of one vector with many, in a fixed order of operations."""
    return vector[0] * vectors[0] + vector[1] * vectors[1] + vector[2] * vectors[2]


def interpolate(image: np.ndarray, u: np.ndarray, v: np.ndarray, border: int) -> np.ndarray:
    """`image` at u, v in [0, 1], bilinearly: (..., channels); u and v have one or two axes."""
    height, width = image.shape[:2]
    x, y = (np.atleast_2d(a).astype(np.float32) for a in (u * width - 0.5, v * height - 0.5))
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border).reshape(*u.shape, -1)


def column(vector: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`vector` (3,) with as many trailing axes as `like` has."""
    return vector.reshape((3,) + (1,) * (like.ndim - 1))


def make_box(centre, size, texture, *, turn=0.0, scale=1.0, shift=0.0) -> list[Quad]:
    """A box standing on `centre`, turned by `turn` degrees about y; the texture is `scale` metres wide."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    x, y, z = (np.array(a) * n for a, n in zip(((c, 0, s), (0, 1, 0), (-s, 0, c)), size, strict=True))
    base = np.asarray(centre, float)
    faces = (
        (base - x / 2 - z / 2 + y, x, -y),  # front
        (base + x / 2 + z / 2 + y, -x, -y),  # back
        (base - x / 2 + z / 2 + y, -z, -y),  # left
        (base + x / 2 - z / 2 + y, z, -y),  # right
        (base - x / 2 + z / 2 + y, x, -z),  # top
        (base - x / 2 - z / 2, x, z),  # bottom
    )
    quads = []
    for i, (corner, u, v) in enumerate(faces):
        repeat = (np.linalg.norm(u) / scale, np.linalg.norm(v) / scale)
        grain = texture if repeat[0] > repeat[1] else texture.swapaxes(0, 1)  # along the longer edge
        quads.append(Quad(grain, repeat, (shift + 0.37 * i, shift * 1.7), corner=corner, edge_u=u, edge_v=v))
    return quads


@dataclass
class Camera:
    """A pinhole camera and its exposure."""

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    roll: float  # degrees, clockwise
    focal: float  # pixels of a picture 640 wide
    exposure: float
    balance: tuple[float, float, float]  # gains of red, green and blue
    seed: int  # of the sensor's noise

    def axes(self) -> np.ndarray:
        """Rows: right, down and forward, in world coordinates."""
        forward = np.subtract(self.target, self.position)
        forward /= np.linalg.norm(forward)
        right = np.cross((0, 1, 0), forward)
        right /= np.linalg.norm(right)
        down = np.cross(right, forward)
        c, s = np.cos(np.radians(self.roll)), np.sin(np.radians(self.roll))
        return np.stack([c * right + s * down, c * down - s * right, forward])

    def rays(self, width: int, height: int) -> np.ndarray:
        """Directions (3, height, width) through the pixel centres; their component along the axis is 1."""
        x = (np.arange(width) + 0.5 - width / 2) / (self.focal * width / 640)
        y = (np.arange(height) + 0.5 - height / 2) / (self.focal * width / 640)
        right, down, forward = self.axes().astype(np.float32)[:, :, None, None]
        return forward + right * x.astype(np.float32) + down * y.astype(np.float32)[:, None]

    def project(self, points: np.ndarray, width: int, height: int) -> np.ndarray:
        """Points (3, ...) to (3, ...): x and y in pixels, from the corner of the picture, and the depth."""
        offset = points - column(np.asarray(self.position, points.dtype), points)
        x, y, z = (dot(axis, offset) for axis in self.axes().astype(points.dtype))
        scale = self.focal * width / 640 / np.where(z > 0.05, z, np.nan)
        return np.stack([x * scale + width / 2, y * scale + height / 2, z])


Scene = Sequence[Sequence[Surface]]  # objects; those of an object are near each other


def bake(scene: Scene, seed: int = 0) -> None:
    """Gives every surface its light map: the sun's disc and the sky's dome, with shadows, by sampling."""
    rng = np.random.default_rng(seed)
    corners = [np.concatenate([surface.bounds() for surface in group], 1) for group in scene]
    objects = [
        (group, c.min(1, keepdims=True), c.max(1, keepdims=True))
        for group, c in zip(scene, corners, strict=True)
    ]
    sun = (SUN / np.linalg.norm(SUN)).astype(np.float32)
    for surface in (surface for group in scene for surface in group):
        rows, columns = (int(np.clip(np.ceil(size / TEXEL), 4, 180)) for size in surface.size[::-1])
        u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
        position, normal = surface.point(u.ravel().astype(np.float32), v.ravel().astype(np.float32))
        light = np.zeros((3, rows * columns), np.float32)
        facing = np.maximum(dot(sun, normal), 0)
        batch = max(1, 32_000 // (rows * columns))  # OpenCV's maps end at 32767
        for first in range(0, LIGHT_SAMPLES, batch):
            n = min(batch, LIGHT_SAMPLES - first)
            origin, around = (
                np.tile(a, (1, n)).astype(np.float32) for a in (position + 2e-3 * normal, normal)
            )
            jitter = rng.normal(size=origin.shape).astype(np.float32)
            if facing.any():
                shadow = blocked(objects, origin, sun[:, None] + PENUMBRA * jitter).reshape(n, -1)
                light += (facing * (n - shadow.sum(0))) * SUN_COLOUR[:, None]
            around += jitter / np.sqrt(dot(jitter, jitter))  # distributed as the cosine to the normal
            sky = (~blocked(objects, origin, around) & (around[1] > 0)).reshape(n, -1).sum(0)
            light += sky * SKY_COLOUR[:, None] + (n - sky) * BOUNCE_COLOUR[:, None]
        light = (light / LIGHT_SAMPLES).T.reshape(rows, columns, 3).astype(np.float32)
        surface.light = cv2.GaussianBlur(light, (0, 0), 0.8)


def blocked(objects: list[tuple], origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Whether a ray from each origin hits anything.

    Args:
      objects: (surfaces, low, high), with the corners (3, 1) of a box that holds them.
      origin, direction: (3, n).
    """
    result = np.zeros(origin.shape[1], bool)
    for group, low, high in objects:
        todo = np.flatnonzero(~result)
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1 / direction[:, todo]
            a, b = (low - 1e-3 - origin[:, todo]) * inverse, (high + 1e-3 - origin[:, todo]) * inverse
        near, far = np.minimum(a, b).max(0), np.maximum(a, b).min(0)
        todo = todo[(near <= far) & (far > 0)]
        for surface in group:
            if not todo.size:
                break
            hit = np.isfinite(surface.hit(origin[:, todo], direction[:, todo])[0])
            result[todo[hit]] = True
            todo = todo[~hit]
    return result


def render(
    scene: Scene, camera: Camera, width: int, height: int, supersampling: int
) -> tuple[np.ndarray, np.ndarray]:
    """The radiance (height, width, 3), float32, and the depth (height, width), infinite where nothing is."""
    width, height = width * supersampling, height * supersampling
    rays = camera.rays(width, height)
    depth = np.full((height, width), np.inf, np.float32)
    colour = np.zeros((height, width, 3), np.float32)
    origin = np.asarray(camera.position, np.float32)[:, None, None]
    for surface in (surface for group in scene for surface in group):
        x, y, _ = camera.project(surface.bounds(), width, height)
        if np.isnan(x).any():  # reaches behind the camera
            x, y = np.array([0, width]), np.array([0, height])
        left, right = np.clip([np.floor(x.min()), np.ceil(x.max())], 0, width).astype(int)
        top, bottom = np.clip([np.floor(y.min()), np.ceil(y.max())], 0, height).astype(int)
        if left >= right or top >= bottom:
            continue
        window = (slice(top, bottom), slice(left, right))
        t, u, v = surface.hit(origin, rays[(slice(None), *window)])
        nearer = t < depth[window]
        depth[window][nearer] = t[nearer]
        u, v = np.where(nearer, u, 0), np.where(nearer, v, 0)
        colour[window][nearer] = (surface.sample(u, v)[..., :3] * surface.lit(u, v))[nearer]
    size = (width // supersampling, height // supersampling)
    return cv2.resize(colour, size, interpolation=cv2.INTER_AREA), depth[
        supersampling // 2 :: supersampling, supersampling // 2 :: supersampling
    ]


def develop(radiance: np.ndarray, camera: Camera) -> np.ndarray:
    """A photograph, uint8 sRGB, of a radiance: lens, exposure, white balance, sensor noise and tone curve."""
    height, width = radiance.shape[:2]
    y, x = np.mgrid[:height, :width]
    off_axis = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / camera.focal**2
    image = cv2.GaussianBlur(radiance, (0, 0), 0.3) / (1 + off_axis[..., None]) ** 2
    image = image * camera.exposure * np.asarray(camera.balance)
    rng = np.random.default_rng(camera.seed)
    image = image + rng.normal(size=image.shape) * np.sqrt(NOISE_READ**2 + NOISE_SHOT * np.maximum(image, 0))
    image = 1 - np.exp(-1.25 * np.maximum(image, 0))  # film-like shoulder
    return np.rint(image ** (1 / 2.2) * 255).astype(np.uint8)


def visible(depth: np.ndarray, camera: Camera, other_depth: np.ndarray, other: Camera) -> tuple[float, float]:
    """How much of what one camera sees another one sees too, and how much larger.

    Args:
      depth, other_depth: (height, width) from `render`, of one size.
      camera, other: the cameras.

    Returns:
      The share of the first picture's pixels that are inside the second one and not hidden there, and the
      median, over these, of the other picture's scale over this one's.
    """
    height, width = depth.shape
    points = column(np.float32(camera.position), depth[None]) + camera.rays(width, height) * depth
    x, y, z = other.project(points, width, height)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column_, row = (np.where(inside, a, 0).astype(int) for a in (x, y))
    seen = inside & (np.abs(other_depth[row, column_] / z - 1) < 0.01)
    return float(seen.mean()), float(np.median((other.focal / z / (camera.focal / depth))[seen]))
