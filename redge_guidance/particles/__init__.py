"""Several sequences of one prompt that compete: sequential Monte Carlo at the seam of guidance."""

from redge_guidance.particles.attached import ParticleHandle as ParticleHandle
from redge_guidance.particles.attached import particles as particles
from redge_guidance.particles.population import Outcome as Outcome
from redge_guidance.particles.population import ParticleStep as ParticleStep
from redge_guidance.particles.search import Found as Found
from redge_guidance.particles.search import best_of_n as best_of_n
from redge_guidance.particles.search import search as search
from redge_guidance.particles.settings import ParticleConfig as ParticleConfig
